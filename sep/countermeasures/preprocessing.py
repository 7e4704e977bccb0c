"""Countermeasures that an adversary applies to the released images once, before training on them.

Legend: B images, C channels, H W pixels; every function maps stored levels, `(B, 3, H, W)` uint8, to the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import torch
from torch import Tensor
from torchvision.io import decode_webp
from torchvision.transforms import v2

LONGEST_WEBP = 16383  # pixels a side
ON_SCREEN, SCREENSHOT_QUALITY = 0.75, 80  # of the sides; of the JPEG


def grayscale(images: Tensor) -> Tensor:
    """Replace all three channels by luma (Liu et al. 2023, "Image Shortcut Squeezing")."""
    gray: Tensor = v2.functional.rgb_to_grayscale(images, num_output_channels=3)
    return gray


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Compress and decode by a real JPEG codec (Liu et al. 2023, "Image Shortcut Squeezing", use quality 10)."""
    return torch.stack([v2.functional.jpeg(image, quality) for image in images])


def webp(images: Tensor, quality: int) -> Tensor:
    """Compress and decode by a real WebP codec, lossy. Images that are too large for WebP stay as they are.

    torchvision has no encoder for WebP. This function alone uses that of Pillow, which torchvision brings along.
    """
    return torch.stack([_webp(image, quality) for image in images]) if max(images.shape[-2:]) <= LONGEST_WEBP else images


def _webp(image: Tensor, quality: int) -> Tensor:
    stream = BytesIO()
    v2.functional.to_pil_image(image).save(stream, "WEBP", quality=quality)
    decoded: Tensor = decode_webp(torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8))
    return decoded


def resize(images: Tensor, percent: int) -> Tensor:
    """Resize to a percentage of the sides and back, antialiased: a picture from a page that shows it smaller."""
    small = [max(1, round(side * percent / 100)) for side in images.shape[-2:]]
    return _resized(_resized(images, small), images.shape[-2:])


def screenshot(images: Tensor) -> Tensor:
    """Resize to the size on a screen, compress as JPEG of quality 80, and resize back."""
    shown = _resized(images, [max(1, round(side * ON_SCREEN)) for side in images.shape[-2:]])
    return _resized(jpeg(shown, SCREENSHOT_QUALITY), images.shape[-2:])


def _resized(images: Tensor, size: Sequence[int]) -> Tensor:
    if max(size) == 1:  # torch cannot resize uint8 images to one pixel
        images = images.float()
    return as_stored(v2.functional.resize(images, list(size), antialias=True))


def bit_depth(images: Tensor, bits: int) -> Tensor:
    """Round each level to the nearest of `2**bits` equally spaced ones from 0 to 255 (Xu et al. 2018, "Feature Squeezing").

    Posterising would cut levels off instead and darken the training images, while test images are not darkened.
    """
    apart = 255 / (2**bits - 1)
    rounded: Tensor = ((images / apart).round() * apart).round().to(torch.uint8)
    return rounded


def gaussian_blur(images: Tensor) -> Tensor:
    """Blur by a 3x3 Gaussian with a standard deviation of one pixel (a countermeasure of Liu et al. 2023, "Image Shortcut Squeezing").

    It removes most of the finest detail. Some benchmarks take a deviation of 0.1 pixels, which changes no level. A side of one pixel, at
    which there is nothing to mirror, is not blurred.
    """
    height, width = images.shape[-2:]
    blurred: Tensor = v2.functional.gaussian_blur(images, kernel_size=[min(3, 2 * side - 1) for side in (width, height)], sigma=[1.0, 1.0])
    return blurred


def as_stored(images: Tensor) -> Tensor:
    """Return levels of any type as they would be stored: rounded, from 0 to 255, uint8."""
    return images if images.dtype == torch.uint8 else images.round().clamp(0, 255).to(torch.uint8)
