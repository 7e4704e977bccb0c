"""Visibility of a change: SSIM against a second implementation and by its definition, and the count of changed pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from sep.quality import PIXELS_AT_ONCE, changed_percent, ssim


def images(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Return images of smooth shapes with some noise."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    generator = torch.Generator().manual_seed(seed)
    phase = torch.rand(count, 3, 1, 1, generator=generator) * 6
    waves = 128 + 80 * torch.sin(x * 0.3 + phase) * torch.cos(y * 0.2 + phase)
    return (waves + 8 * torch.randn(count, 3, height, width, generator=generator)).round().clamp(0, 255).byte()


def changed(clean: Tensor, levels: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    change = torch.randint(-levels, levels + 1, clean.shape, generator=generator)
    return (clean.int() + change).clamp(0, 255).byte()


def reference(protected: NDArray[np.uint8], clean: NDArray[np.uint8]) -> float:
    """Return the SSIM of one plane as the paper defines it, with SciPy's Gaussian of the same width, and without the borders."""

    def mean(plane: NDArray[np.float64]) -> NDArray[np.float64]:
        blurred: NDArray[np.float64] = gaussian_filter(plane, 1.5, radius=5)[5:-5, 5:-5]
        return blurred

    x, y = protected.astype(float), clean.astype(float)
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean((x - x.mean()) ** 2) - mean(x - x.mean()) ** 2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 2.55**2, 7.65**2
    return float((((2 * mx * my + c1) * (2 * cov + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())


@pytest.mark.parametrize(("height", "width", "levels"), [(32, 32, 2), (32, 32, 8), (11, 40, 8), (70, 51, 16)])
def test_ssim_is_that_of_the_paper(height: int, width: int, levels: int) -> None:
    clean = images(3, height, width)
    protected = changed(clean, levels)
    found = ssim(protected, clean)
    for image in range(3):
        planes = [reference(protected[image, channel].numpy(), clean[image, channel].numpy()) for channel in range(3)]
        assert float(found[image]) == pytest.approx(np.mean(planes), abs=1e-9)
    assert found.max() < 1


def test_ssim_is_one_of_what_is_the_same_and_falls_with_the_change() -> None:
    clean = images(4, 32, 32)
    assert ssim(clean, clean).tolist() == pytest.approx([1.0] * 4)
    weak, strong = ssim(changed(clean, 2), clean), ssim(changed(clean, 8), clean)
    assert (strong < weak).all()
    assert (weak < 1).all()


def test_ssim_of_two_flat_images_is_the_comparison_of_their_means() -> None:
    clean, protected = (torch.full((1, 3, 20, 20), value, dtype=torch.uint8) for value in (100, 108))
    assert float(ssim(protected, clean)) == pytest.approx((2 * 100 * 108 + 2.55**2) / (100**2 + 108**2 + 2.55**2), abs=1e-9)


def test_ssim_of_one_image_does_not_depend_on_the_others() -> None:
    clean = images(PIXELS_AT_ONCE // 32**2 + 3, 32, 32)
    protected = changed(clean, 8)
    alone = torch.cat([ssim(protected[i : i + 1], clean[i : i + 1]) for i in range(len(clean))])
    assert ssim(protected, clean).tolist() == pytest.approx(alone.tolist(), abs=1e-12)


@pytest.mark.parametrize("side", [1, 6, 10])
def test_small_images_have_a_window_that_fits(side: int) -> None:
    clean = images(2, side, side)
    found = ssim(changed(clean, 8), clean)
    assert found.isfinite().all()
    assert (found <= 1).all()


def test_a_pixel_counts_as_changed_once_whatever_number_of_channels_did() -> None:
    clean = torch.zeros(3, 3, 4, 5, dtype=torch.uint8)
    protected = clean.clone()
    protected[1, 0, 0, 0] = protected[1, 2, 0, 0] = protected[1, 1, 3, 4] = 1
    protected[2, 1] = 255
    assert changed_percent(protected, clean).tolist() == pytest.approx([0.0, 10.0, 100.0])
