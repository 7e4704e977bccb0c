"""Random crops and flips of whole batches, on the device of the batch.

Legend: B images, C channels, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional

from sep.execution import moved
from sep.train_config import Augmentation

LEAST_AREA = 0.08  # of a window, as a share of the image


def beside(images: Tensor, draws: Tensor) -> Tensor:
    """Copy draws from the CPU to the images' device."""
    return moved(draws, images.device)


@contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Replace torch's own random state by one drawn from `generator`, for library code that takes no generator; restore it afterwards."""
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):  # all draws here are on the CPU
        torch.default_generator.manual_seed(seed)
        yield


def crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to an eighth of its side (4 pixels of 32) either way and fill in zeros: `(B, C, H, W)`."""
    count, _, height, width = images.shape
    pad = height // 8
    padded = functional.pad(images, (pad, pad, pad, pad))
    top, left = beside(images, torch.randint(2 * pad + 1, (2, count, 1), generator=generator))
    rows = top + torch.arange(height, device=images.device)
    columns = left + torch.arange(width, device=images.device)
    index = torch.arange(count, device=images.device)[:, None, None]
    # Advanced indices around the channel axis put it last, which is a copy in channels-last order.
    return padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def flip(images: Tensor, generator: torch.Generator, draws: int | None = None) -> Tensor:
    """Mirror each image left to right with probability one half; with one draw, all of them or none."""
    coins = beside(images, torch.rand(draws or len(images), generator=generator)) < 0.5
    return torch.where(coins[:, None, None, None], images.flip(3), images)


def resized_crop(images: Tensor, generator: torch.Generator, least: float = LEAST_AREA, draws: int | None = None) -> Tensor:
    """Replace each image by a random window of it, 8 % to 100 % of the area, aspect 3/4 to 4/3, bilinearly resized back.

    The distribution is that of torchvision's RandomResizedCrop, except that a window that does not fit is cut to the image.

    Args:
        images: `(B, C, H, W)`.
        generator: on the CPU.
        least: smallest share of the area.
        draws: number of windows: B if not given, or one for all images.
    """
    count = draws or len(images)
    area, aspect, x, y = torch.rand(4, count, generator=generator)
    scale = least + (1 - least) * area
    ratio = torch.exp((2 * aspect - 1) * math.log(4 / 3)) * images.shape[2] / images.shape[3]  # in pixels, not in shares of the sides
    width, height = (scale * ratio).sqrt().clamp(max=1), (scale / ratio).sqrt().clamp(max=1)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width, height
    theta[:, 0, 2], theta[:, 1, 2] = (2 * x - 1) * (1 - width), (2 * y - 1) * (1 - height)
    levels = images.float()
    grid = functional.affine_grid(beside(images, theta), [count, *images.shape[1:]], align_corners=False).expand(len(images), -1, -1, -1)
    return functional.grid_sample(levels, grid, mode="bilinear", padding_mode="border", align_corners=False)


STEPS: dict[str, tuple[Callable[[Tensor, torch.Generator], Tensor], ...]] = {
    "none": (),
    "crop": (crop,),
    "crop-flip": (crop, flip),
    "resized-crop-flip": (resized_crop, flip),
}
assert tuple(STEPS) == get_args(Augmentation)


def augment(images: Tensor, name: Augmentation, generator: torch.Generator) -> Tensor:
    """Return a batch `(B, C, H, W)` in levels after the named augmentation; `generator` is on the CPU."""
    for step in STEPS[name]:
        images = step(images, generator)
    return images
