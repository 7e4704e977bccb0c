"""What a stranger may do to the released images once, before training on them.

Legend: B images, C channels, H W pixels; everything maps stored levels, `(B, 3, H, W)` uint8, to the same.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2


def grayscale(images: Tensor) -> Tensor:
    """Luma in all three channels (Liu et al. 2023, "Image Shortcut Squeezing")."""
    gray: Tensor = v2.functional.rgb_to_grayscale(images, num_output_channels=3)
    return gray


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Compressed and decoded by a real JPEG codec (Liu et al. 2023, "Image Shortcut Squeezing", use quality 10)."""
    return torch.stack([v2.functional.jpeg(image, quality) for image in images])


def bit_depth(images: Tensor, bits: int) -> Tensor:
    """Each level rounded to the nearest of `2**bits` equally spaced ones from 0 to 255 (Xu et al. 2018, "Feature Squeezing").

    Rounded and not cut off, as posterising does it: that would darken the training images, and test images are not darkened.
    """
    apart = 255 / (2**bits - 1)
    rounded: Tensor = ((images / apart).round() * apart).round().to(torch.uint8)
    return rounded


def gaussian_blur(images: Tensor) -> Tensor:
    """A 3x3 Gaussian of one pixel's standard deviation (a countermeasure of Liu et al. 2023, "Image Shortcut Squeezing").

    Benchmarks that call a deviation of 0.1 pixels a blur change no level by it; this one takes most of the finest detail.
    """
    blurred: Tensor = v2.functional.gaussian_blur(images, kernel_size=[3, 3], sigma=[1.0, 1.0])
    return blurred


def as_stored(images: Tensor) -> Tensor:
    """Levels of any type as they would be stored: rounded, from 0 to 255, uint8."""
    return images if images.dtype == torch.uint8 else images.round().clamp(0, 255).to(torch.uint8)
