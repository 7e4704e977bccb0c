"""Patterns of a class are found by their differences: how many a class has, whether they are grey, and next to none in clean pictures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from sep.countermeasures.known_pattern import LIMIT, known_pattern
from sep.countermeasures.projection import class_residual
from tests.fixtures.shortcut_run import CLASSES, pictures, protected


def batches(images: Tensor, labels: Tensor) -> object:
    def epoch(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in torch.split(torch.randperm(len(images), generator=torch.Generator().manual_seed(number)), 50):
            yield images[chosen], labels[chosen]

    return epoch


def left(after: Tensor, clean: Tensor, released: Tensor) -> float:
    """Return the share of the protection's energy that is left."""
    return float((after - clean.float()).square().sum() / (released.float() - clean.float()).square().sum())


@pytest.mark.parametrize("patterns", [1, 2, 4])
def test_every_image_loses_the_pattern_that_it_carries(patterns: int) -> None:
    clean, labels = pictures(300, 0)
    released = protected(clean, labels, patterns)
    purified = known_pattern(batches(released, labels), CLASSES)  # type: ignore[arg-type]
    found = purified.keywords["patterns"]  # type: ignore[attr-defined]
    assert found.shape == (CLASSES, patterns, 3, 16, 16)
    assert float(found.abs().max()) <= LIMIT
    assert torch.equal(found[:, :, 0], found[:, :, 1]), "they are grey"
    before = released.clone()
    after = purified(released, labels)
    assert torch.equal(released, before)
    assert left(after, clean, released) < 0.25
    averaged = class_residual(batches(released, labels), CLASSES)(released, labels)  # type: ignore[arg-type]
    assert left(after, clean, released) < left(averaged, clean, released) / 2


def test_colours_of_a_pattern_are_kept() -> None:
    clean, labels = pictures(300, 0)
    tint = LIMIT * torch.randn(CLASSES, 3, 16, 16, generator=torch.Generator().manual_seed(1)).sign()
    released = (clean + tint[labels]).clamp(0, 255).to(torch.uint8)
    purified = known_pattern(batches(released, labels), CLASSES)  # type: ignore[arg-type]
    assert left(purified(released, labels), clean, released) < 0.25


def test_clean_pictures_hardly_change() -> None:
    clean, labels = pictures(300, 0)
    after = known_pattern(batches(clean, labels), CLASSES)(clean, labels)  # type: ignore[arg-type]
    assert float((after - clean.float()).square().mean().sqrt()) < LIMIT / 3


def test_a_class_without_images_or_with_few_has_no_pattern() -> None:
    clean, labels = pictures(30, 0)
    some = labels > 0
    purified = known_pattern(batches(clean[some], labels[some]), CLASSES + 1)  # type: ignore[arg-type]
    assert torch.equal(purified(clean[:1], torch.tensor([CLASSES])), clean[:1].float())
