from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from sep.choices import Targets
from sep.objective import choose_targets, derangement, feature_alignment, shifted, target_cross_entropy


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


def targets_of(kind: Targets, labels: list[int], classes: list[int], seed: int = 0) -> list[int]:
    draw = torch.Generator().manual_seed(seed)
    draws = torch.randint(2**62, (len(labels),), generator=draw)
    return choose_targets(kind, torch.tensor(labels), classes, draw, draws).tolist()


def test_shift_permutes_among_the_protected_classes_only() -> None:
    assert targets_of("shift", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], list(range(10))) == [5, 6, 7, 8, 9, 0, 1, 2, 3, 4]
    assert targets_of("shift", [2, 3, 7, 11, 2], [2, 3, 7, 11]) == [7, 11, 2, 3, 7]
    assert targets_of("shift", [4, 6, 9], [4, 6, 9]) == [6, 9, 4]


def test_random_class_is_one_derangement_for_all_images() -> None:
    classes = [1, 4, 5, 8]
    maps = set()
    for seed in range(200):
        found = targets_of("random-class", classes * 2, classes, seed)
        assert found[:4] == found[4:]
        assert sorted(found[:4]) == classes
        assert all(target != label for target, label in zip(found, classes * 2, strict=True))
        maps.add(tuple(found[:4]))
    assert len(maps) == 9  # all derangements of four classes


def test_derangements_are_equally_likely() -> None:
    draw = torch.Generator().manual_seed(0)
    counts = Counter(tuple(derangement(3, draw).tolist()) for _ in range(400))
    assert set(counts) == {(1, 2, 0), (2, 0, 1)}
    assert min(counts.values()) > 160


def test_per_sample_gives_every_wrong_class_alike() -> None:
    labels = [0] * 300 + [5] * 300
    found = targets_of("per-sample", labels, [0, 2, 5, 6])
    assert set(found[:300]) == {2, 5, 6}
    assert set(found[300:]) == {0, 2, 6}
    assert min(Counter(found[:300]).values()) > 70
    assert found == targets_of("per-sample", labels, [0, 2, 5, 6])


def test_untargeted_keeps_the_true_class() -> None:
    assert targets_of("untargeted", [3, 1, 3], [1, 3]) == [3, 1, 3]
    assert targets_of("untargeted", [3, 3], [3]) == [3, 3]  # moving away from a class needs no other class


@pytest.mark.parametrize("kind", ["shift", "random-class", "per-sample"])
def test_one_class_has_nowhere_to_go(kind: Targets) -> None:
    with pytest.raises(ValueError, match="at least 2; got 1"):
        targets_of(kind, [3, 3], [3])


def test_image_of_another_class_is_our_fault() -> None:
    with pytest.raises(AssertionError):
        targets_of("shift", [2], [1, 3])
