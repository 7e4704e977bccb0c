"""The operations of TrivialAugment's wide space, for many images at once: with the draws and pixels of torchvision's `TrivialAugmentWide`.

Torchvision draws once for all images that it is given, and one at a time they would take four times as long. A test holds the pixels to
it. Where images are not square, a few lie half-way between two, and may be the other one.

Legend: N images of a batch, H W pixels. Every operation maps whole float levels `(N, 3, H, W)` and strengths `(N, 1, 1, 1)` to whole
levels of the same shape.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import v2

from sep.countermeasures.image_operations import Change, equalize, posterize, rotate, smoothed, solarize, taken
from sep.countermeasures.preprocessing import as_stored

BINS = 31  # strengths of an operation


class Wide(NamedTuple):
    """An operation, its weakest and its strongest strength, and whether that is negated half of the time. Equal ones are not drawn."""

    change: Change
    weakest: float = 0.0
    strongest: float = 0.0
    signed: bool = False


def drawn(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the place of an operation of `WIDE` for each image, and its strength, `(N,)` each, as torchvision draws them."""
    own = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))
    spaces = [(each, torch.linspace(each.weakest, each.strongest, BINS).tolist()) for each in WIDE]
    which, strengths = [], []
    for _ in range(count):
        which.append(int(torch.randint(len(WIDE), (), generator=own)))
        operation, space = spaces[which[-1]]
        strength = space[int(torch.randint(BINS, (), generator=own))] if operation.weakest != operation.strongest else 0.0
        negated = operation.signed and float(torch.rand((), generator=own)) <= 0.5
        strengths.append(-strength if negated else strength)
    return torch.tensor(which), torch.tensor(strengths)


def unchanged(levels: Tensor, _: Tensor) -> Tensor:
    """Return levels as they are."""
    return levels


def shear_x(levels: Tensor, slope: Tensor) -> Tensor:
    """Shift rows, each by `slope` pixels more than the row above it; the top edge stays."""
    height, width = levels.shape[2:]
    return taken(levels, "nearest", xy=slope, x=slope * height / (2 * width))


def shear_y(levels: Tensor, slope: Tensor) -> Tensor:
    """Shift columns, each by `slope` pixels more than the column before it; the left edge stays."""
    height, width = levels.shape[2:]
    return taken(levels, "nearest", yx=slope, y=slope * width / (2 * height))


def translate_x(levels: Tensor, pixels: Tensor) -> Tensor:
    """Shift sideways by whole pixels."""
    return taken(levels, "nearest", x=-pixels.trunc() / levels.shape[3])


def translate_y(levels: Tensor, pixels: Tensor) -> Tensor:
    """Shift up or down by whole pixels."""
    return taken(levels, "nearest", y=-pixels.trunc() / levels.shape[2])


def solarize_share(levels: Tensor, share: Tensor) -> Tensor:
    """Invert levels from a share of the largest one up."""
    return solarize(levels, 255 * share)


def brightness(levels: Tensor, change: Tensor) -> Tensor:
    """Multiply all levels by `1 + change`."""
    return _cut_off(levels * (1 + change))


def colour(levels: Tensor, change: Tensor) -> Tensor:
    """Go away from the grey image, or towards it."""
    return _away(levels, _grey(levels), change)


def contrast(levels: Tensor, change: Tensor) -> Tensor:
    """Go away from the mean of the grey image, or towards it."""
    return _away(levels, _grey(levels).mean((1, 2, 3), keepdim=True), change)


def sharpness(levels: Tensor, change: Tensor) -> Tensor:
    """Go away from the smoothed image, or towards it."""
    return _cut_off(_fused(levels, smoothed(levels).round() - levels, -change))


def _grey(levels: Tensor) -> Tensor:
    grey: Tensor = v2.functional.rgb_to_grayscale(levels)
    return grey.floor()


def _away(levels: Tensor, other: Tensor, change: Tensor) -> Tensor:
    return _cut_off(_fused(levels * (1 + change), other, -change))


def _fused(first: Tensor, second: Tensor, factor: Tensor) -> Tensor:
    """Return `first + factor second`, rounded once, as processors add products: what is cut off afterwards depends on the last bit."""
    return (first.double() + second.double() * factor.double()).float()


def _cut_off(levels: Tensor) -> Tensor:
    """Return levels from 0 to 255, without their fractions."""
    return levels.clamp(0, 255).floor()


def auto_contrast(levels: Tensor, _: Tensor) -> Tensor:
    """Stretch each channel to the whole range."""
    stretched: Tensor = v2.functional.autocontrast(as_stored(levels))
    return stretched.float()


WIDE = (
    Wide(unchanged),
    Wide(shear_x, 0, 0.99, signed=True),
    Wide(shear_y, 0, 0.99, signed=True),
    Wide(translate_x, 0, 32, signed=True),
    Wide(translate_y, 0, 32, signed=True),
    Wide(partial(rotate, mode="nearest"), 0, 135, signed=True),
    Wide(brightness, 0, 0.99, signed=True),
    Wide(colour, 0, 0.99, signed=True),
    Wide(contrast, 0, 0.99, signed=True),
    Wide(sharpness, 0, 0.99, signed=True),
    Wide(posterize, 8, 2),
    Wide(solarize_share, 1, 0),
    Wide(auto_contrast),
    Wide(equalize),
)
