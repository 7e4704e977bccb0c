"""Directions of a linear model: found where the classes differ, and gone from the images afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from sep.countermeasures.projection import class_residual, directions, fit, orthogonal_projection, project_out
from sep.countermeasures.registry import plan

CLASSES = 4


def marked(count: int, strength: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return images of noise that each carry a weak pattern of their class, their labels, and the patterns."""
    draws = torch.Generator().manual_seed(0)
    patterns = torch.randn(CLASSES, 3, 12, 12, generator=draws).sign()
    labels = torch.arange(count) % CLASSES
    images = 128 + 25 * torch.randn(count, 3, 12, 12, generator=draws) + strength * patterns[labels]
    return images.round().clamp(0, 255).to(torch.uint8), labels, patterns


def batches(images: Tensor, labels: Tensor) -> object:
    def epoch(number: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(number))
        for chosen in torch.split(order, 50):
            yield images[chosen], labels[chosen]

    return epoch


def linear_accuracy(images: Tensor, labels: Tensor) -> float:
    """Return the percentage of the second half that a linear model gets right after a fit on the first half."""
    half = len(images) // 2
    weights = fit(batches(images[:half], labels[:half]), CLASSES)  # type: ignore[arg-type]
    logits = (images[half:].flatten(1).float() / 255 - 0.5) @ weights.T
    return 100 * float((logits.argmax(1) == labels[half:]).float().mean())


def test_what_a_linear_model_sees_is_taken_out() -> None:
    """A linear model separates the classes on unseen images before, and only by chance afterwards."""
    images, labels, patterns = marked(1600, strength=8)
    assert linear_accuracy(images, labels) > 95
    projected = orthogonal_projection(batches(images, labels), CLASSES)(images, labels)  # type: ignore[arg-type]
    assert linear_accuracy(projected, labels) < 100 / CLASSES + 10
    # The images have lost hardly anything, the patterns nearly everything.
    assert float((projected - images).norm() / images.float().norm()) < 0.2
    between = torch.stack([projected[labels == k].mean(0) for k in range(CLASSES)])
    before = torch.stack([images[labels == k].float().mean(0) for k in range(CLASSES)])
    shift = (patterns - patterns.mean(0)).flatten()
    assert float((between - between.mean(0)).flatten() @ shift) < 0.3 * float((before - before.mean(0)).flatten() @ shift)


def test_a_pattern_of_a_class_is_taken_out_of_its_images() -> None:
    """Of what the images of a class share, the fine part goes, and the coarse part and whatever an image has alone stay."""
    images, labels, patterns = marked(1600, strength=8)
    bright = images.float().mul(0.8).add(30.0 * (labels == 2)[:, None, None, None]).round().to(torch.uint8)
    cleaned = class_residual(batches(bright, labels), CLASSES)(bright, labels)  # type: ignore[arg-type]
    fine = patterns - gaussian_blur(patterns, [9, 9], [2.0, 2.0])
    for images_now, least, most in ((bright.float(), 0.7, 1.2), (cleaned, -0.15, 0.15)):
        for k in range(CLASSES):
            left = (images_now[labels == k].mean(0) * fine[k]).sum() / (6.4 * patterns[k] * fine[k]).sum()
            assert least < float(left) < most
    means = [cleaned[labels == k].mean() for k in range(CLASSES)]
    assert abs(float(means[2] - means[0]) - 30) < 1
    assert float((cleaned - bright).norm() / bright.float().norm()) < 0.2
    assert cleaned.dtype == torch.float32


def test_directions_are_orthonormal_and_one_fewer_than_classes() -> None:
    images, labels, _ = marked(400, strength=8)
    basis = directions(fit(batches(images, labels), CLASSES))  # type: ignore[arg-type]
    assert basis.shape == (3 * 12 * 12, CLASSES - 1)
    assert torch.allclose(basis.T @ basis, torch.eye(CLASSES - 1), atol=1e-5)


def test_projecting_leaves_exactly_what_is_orthogonal() -> None:
    basis = torch.linalg.qr(torch.randn(48, 3, generator=torch.Generator().manual_seed(0)))[0]
    images = torch.randint(256, (2500, 3, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    after = project_out(images, basis)
    assert after.dtype == torch.float32
    assert after.shape == images.shape
    assert float((after.flatten(1) @ basis).abs().max()) < 1e-2
    removed = (images - after).flatten(1)
    assert torch.allclose(removed @ basis @ basis.T, removed, atol=1e-2)
    assert torch.allclose(project_out(after, basis), after, atol=1e-2)


def test_it_can_stand_before_a_codec_which_needs_whole_levels() -> None:
    images, labels, _ = marked(200, strength=8)
    first, second = plan("orthogonal-projection+jpeg-90").on_images
    assert first.fitted is not None
    projected = first.fitted(batches(images, labels), CLASSES)(images, labels)  # type: ignore[arg-type]
    assert projected.dtype == torch.float32
    assert second.on_stored(projected).dtype == torch.uint8
