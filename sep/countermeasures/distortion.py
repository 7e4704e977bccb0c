"""Countermeasures that distort training batches strongly.

Legend: B images, C channels, H W pixels. Every function maps float levels `(B, C, H, W)` to the same; `generator` is on the CPU, and draws
do not depend on the images.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sep.augment import beside
from sep.countermeasures.image_operations import each_by_its_own, one_operation_each
from sep.countermeasures.preprocessing import as_stored
from sep.countermeasures.wide_space import WIDE, drawn

WARP_PIXELS = 2.0
# Values from the code of UEraser's authors, whose chances differ from one version to the next.
ROUGHNESS = (0.3, 0.7)  # of plasma: factor on the noise for each halving of the scale
INTENSITY = (0.5, 1.0)  # of brightness, as a share of the whole range of levels
CHANCE = 0.5  # of each image, for each of brightness, contrast and order of channels


def trivial_augment(levels: Tensor, generator: torch.Generator) -> Tensor:
    """Apply one random operation of random strength to each image (Mueller & Hutter 2021, "TrivialAugment", the wide space)."""
    return each_by_its_own(as_stored(levels).float(), [each.change for each in WIDE], *drawn(len(levels), generator))


def random_warp(levels: Tensor, generator: torch.Generator) -> Tensor:
    """Take every pixel from up to two pixels away, each by its own distance, bilinearly (Li et al. 2024, "COIN").

    The paper warps each image once; here distances are drawn anew in every epoch, so that less can be memorised.
    """
    count, _, height, width = levels.shape
    return warped(levels, torch.rand(count, height, width, 2, generator=generator))


def warped(levels: Tensor, draws: Tensor) -> Tensor:
    """Take every pixel from up to two pixels away: levels `(B, C, H, W)` by uniform draws `(B, H, W, 2)`, or `(1, H, W, 2)` for all."""
    count, _, height, width = levels.shape
    shifts = WARP_PIXELS * (2 * draws - 1)
    itself = torch.eye(2, 3).expand(count, 2, 3)
    grid = functional.affine_grid(itself, list(levels.shape), align_corners=False) + shifts * torch.tensor([2 / width, 2 / height])
    return functional.grid_sample(
        levels, beside(levels, grid.to(levels.dtype)), mode="bilinear", padding_mode="border", align_corners=False
    )


def strong(levels: Tensor, generator: torch.Generator) -> Tensor:
    """Apply the distortions of Qin et al. 2023 ("Learning the Unlearnable").

    Brightness by a plasma in each channel, contrast by another plasma, and a random order of the channels each change half of the
    images. One operation of `image_operations` changes every image.
    """
    count, channels = levels.shape[:2]

    def chosen() -> Tensor:
        return beside(levels, torch.rand(count, 1, 1, 1, generator=generator) < CHANCE)

    low, high = INTENSITY
    intensity = beside(levels, low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator))
    brightness = intensity * (2 * plasma(levels, generator) - 1) * chosen()
    contrast = torch.where(chosen(), 4 * plasma(levels, generator), 1)
    order = beside(levels, torch.rand(count, channels, generator=generator).argsort(1))
    order = torch.where(chosen().flatten(1), order, torch.arange(channels, device=levels.device))
    lit = (levels + 255 * brightness).clamp(0, 255)
    contrasted = ((lit - 127.5) * contrast + 127.5).clamp(0, 255)
    mixed = contrasted.gather(1, order[:, :, None, None].expand_as(contrasted))
    return one_operation_each(mixed, generator)


def plasma(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return smooth random fields between 0 and 1 for images `(B, C, H, W)`: noise at every scale, weaker at finer ones.

    The authors use the diamond-square algorithm, whose fields have about the same distribution: half of their values are from 0.39 to
    0.54; here, from 0.42 to 0.58.
    """
    count, channels, height, width = like.shape
    low, high = ROUGHNESS
    roughness = beside(like, low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator))
    field, size, weight, weights = torch.zeros_like(like), 2, torch.ones_like(roughness), torch.zeros_like(roughness)
    while size <= max(height, width):
        noise = beside(like, torch.rand(count, channels, size, size, generator=generator))
        field = field + weight * functional.interpolate(noise, (height, width), mode="bilinear", align_corners=True)
        weights, size, weight = weights + weight, 2 * size, weight * roughness
    return field / weights
