"""Detectors tell what a protection leaves in images, and nothing where it leaves nothing."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from pipeline.operations.roc import Area, area
from sep.detection.classifier import convolutional, linear
from sep.detection.features import residual, spectrum
from sep.detection.filtering import iterative_filtering
from sep.detection.pairs import Detector, Pairs, Scores
from tests.fixtures.shortcut_run import pictures, protected

CLEAN, LABELS = pictures(200, 0)
SPECTRUM, RESIDUAL = (partial(linear, features=features) for features in (spectrum, residual))


def noisy(images: Tensor) -> Tensor:
    """The images with noise of 8 levels, up or down at random."""
    signs = 2 * torch.randint(2, images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.int16) - 1
    return (images + 8 * signs).clamp(0, 255).to(torch.uint8)


def scores(detector: Detector, release: Tensor, clean: Tensor = CLEAN) -> Scores:
    half, labels = len(clean) // 2, LABELS[: len(clean)]
    learn, judge = (Pairs(clean[part], release[part], labels[part]) for part in (slice(half), slice(half, None)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return detector(learn, judge, 3, 0)
    finally:
        torch.set_num_threads(threads)


def measured(found: Scores) -> Area:
    return area(found.values.double().numpy(), found.protected.numpy(), found.pictures.numpy())


@pytest.mark.parametrize("detector", [SPECTRUM, RESIDUAL])
def test_linear_detectors_find_noise(detector: Detector) -> None:
    assert measured(scores(detector, noisy(CLEAN))).auc > 0.99


def test_a_convolutional_detector_finds_noise() -> None:
    few = CLEAN[:100]
    assert measured(scores(partial(convolutional, steps=60), noisy(few), few)).auc > 0.9


@pytest.mark.parametrize("detector", [SPECTRUM, RESIDUAL, partial(convolutional, steps=2)])
def test_what_is_not_changed_is_not_told_apart(detector: Detector) -> None:
    found = measured(scores(detector, CLEAN))
    assert (found.auc, found.error) == (0.5, 0)


@pytest.mark.parametrize("detector", [SPECTRUM, RESIDUAL])
def test_other_pictures_of_the_same_kind_are_not_told_apart(detector: Detector) -> None:
    found = measured(scores(detector, pictures(len(CLEAN), 1)[0]))
    assert abs(found.auc - 0.5) < 3 * found.error


def test_iterative_filtering_finds_images_with_a_pattern_of_their_class() -> None:
    release = protected(CLEAN, LABELS, 1)
    found = measured(scores(iterative_filtering, release))
    assert found.auc - 4 * found.error > 0.5


def test_iterative_filtering_sees_each_picture_in_one_form() -> None:
    few = CLEAN[:40]
    found = scores(iterative_filtering, few, few)
    assert found.pictures.tolist() == list(range(40))
    assert int(found.protected.sum()) == 20


def test_scores_are_the_same_at_every_start() -> None:
    once, again = (scores(RESIDUAL, noisy(CLEAN)).values for _ in range(2))
    assert torch.equal(once, again)


def test_a_residual_does_not_see_brightness() -> None:
    darker = CLEAN.clamp(40, 200) - 20
    assert torch.equal(residual(darker), residual(CLEAN.clamp(40, 200)))
    assert residual(CLEAN).square().sum(1).tolist() == pytest.approx([3.0] * len(CLEAN))  # shares of three kinds of neighbours


def test_the_spectrum_of_a_flat_image_is_its_mean_alone() -> None:
    found = spectrum(torch.full((1, 3, 19, 16), 100, dtype=torch.uint8)).view(3, 64)
    assert found[:, 0].exp().tolist() == pytest.approx([800**2 + 1] * 3)
    assert found[:, 1:].abs().max() < 1e-3
