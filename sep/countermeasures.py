"""What a stranger may do to the released images before training on them.

Legend: B images, C channels, H W pixels; everything maps uint8 levels `(B, 3, H, W)` to the same.
Adding one is one function and one line in the table.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torchvision.transforms import v2


def unchanged(images: Tensor) -> Tensor:
    """The images as they were released."""
    return images


def grayscale(images: Tensor) -> Tensor:
    """Luma in all three channels (Liu et al. 2023, "Image Shortcut Squeezing")."""
    gray: Tensor = v2.functional.rgb_to_grayscale(images, num_output_channels=3)
    return gray


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Compressed and decoded by a real JPEG codec (Liu et al. 2023, "Image Shortcut Squeezing", use quality 10)."""
    return torch.stack([v2.functional.jpeg(image, quality) for image in images])


COUNTERMEASURES: dict[str, Callable[[Tensor], Tensor]] = {
    "none": unchanged,
    "grayscale": grayscale,
    "jpeg-10": partial(jpeg, quality=10),
    "jpeg-50": partial(jpeg, quality=50),
    "jpeg-90": partial(jpeg, quality=90),
}


def apply(name: str, images: Tensor) -> Tensor:
    """Images `(B, 3, H, W)` uint8 after the named countermeasure.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in COUNTERMEASURES:
        raise ValueError(f"unknown countermeasure {name!r}; known are {', '.join(COUNTERMEASURES)}")
    return COUNTERMEASURES[name](images)
