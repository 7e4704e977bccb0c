from __future__ import annotations

import math

import pytest
import torch

from sep.objective import feature_alignment, shifted, target_cross_entropy


def test_targets_are_shifted_by_half_the_classes() -> None:
    assert shifted(torch.arange(10), 10).tolist() == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]
    assert shifted(torch.tensor([0, 60]), 100).tolist() == [50, 10]


@pytest.mark.parametrize("classes", [2, 3, 5, 7, 100])
def test_the_map_is_one_to_one_and_never_the_own_class(classes: int) -> None:
    labels = torch.arange(classes)
    targets = shifted(labels, classes)
    assert sorted(targets.tolist()) == labels.tolist()
    assert not bool((targets == labels).any())


def test_feature_alignment_is_the_squared_distance_over_the_width() -> None:
    features = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    wanted = torch.tensor([[1.0, 0.0, 0.0, 4.0], [2.0, 0.0, 0.0, 0.0]])
    assert float(feature_alignment(features, wanted)) == pytest.approx((4 + 9) / 4 + 4 / 4)


def test_cross_entropy_is_summed_towards_the_target() -> None:
    logits = torch.tensor([[0.0, 0.0], [1.0, 3.0]])
    wanted = math.log(2) + math.log(1 + math.exp(2))
    assert float(target_cross_entropy(logits, torch.tensor([1, 0]))) == pytest.approx(wanted)
