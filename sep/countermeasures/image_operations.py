"""One of twelve operations on each image, of a strength drawn for it: the augmentation that ends UEraser's distortions.

UEraser's authors (Qin et al. 2023, "Learning the Unlearnable") call `TrivialAugment` of the library kornia, 0.6.12 in their benchmark
APBench. Operations and ranges are that policy's, computed as kornia does: brightness is added, contrast multiplied, what moves in is
black, and posterising to no bits leaves nothing. The ranges are narrower than those of `distortion.trivial_augment`: up to 30 degrees
and not 135, a slope of 0.3 and not 0.99, half of the side and not all of it. Where kornia is installed, a test holds the pixels to it;
they differ in that levels between whole ones are rounded before they are equalized, not cut off, and that a flat channel is not
stretched to black.

It differs where the library falls short of its own policy: that version rotates and shifts in one direction only, and takes the slope
for degrees, so that its shears can hardly be seen. And it draws one operation for a whole batch; here every image has its own, as in
Mueller & Hutter 2021 ("TrivialAugment").

Legend: N images of a batch, C channels, H W pixels. Every operation maps float levels `(N, C, H, W)` and strengths `(N, 1, 1, 1)` to
levels of the same shape; those that leave the range are cut off at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from sep.augment import beside
from sep.countermeasures.preprocessing import as_stored


class Operation(NamedTuple):
    """What is done, and between which strengths, drawn uniformly."""

    change: Callable[[Tensor, Tensor], Tensor]
    low: float = 0.0
    high: float = 0.0


def one_operation_each(levels: Tensor, generator: torch.Generator) -> Tensor:
    """Each image after one operation of `OPERATIONS`, all of them equally likely: `(B, C, H, W)` float levels to the same."""
    which = torch.randint(len(OPERATIONS), (len(levels),), generator=generator)
    shares = torch.rand(len(levels), generator=generator)
    after = levels.clone()
    for number, operation in enumerate(OPERATIONS.values()):
        own = (which == number).nonzero().flatten()
        if len(own):
            strengths = operation.low + (operation.high - operation.low) * shares[own]
            index = beside(levels, own)
            after[index] = operation.change(levels[index], beside(levels, strengths).view(-1, 1, 1, 1))
    return after.clamp(0, 255)


def auto_contrast(levels: Tensor, _: Tensor) -> Tensor:
    """Each channel stretched to the whole range."""
    stretched: Tensor = v2.functional.autocontrast(levels / 255)
    return 255 * stretched


def equalize(levels: Tensor, _: Tensor) -> Tensor:
    """Each channel's levels spread so that all are about equally frequent."""
    spread: Tensor = v2.functional.equalize(as_stored(levels))
    return spread.float()


def posterize(levels: Tensor, bits: Tensor) -> Tensor:
    """The highest bits kept, as many as the strength rounded."""
    apart = 2 ** (8 - bits.round())
    return levels.div(apart).floor() * apart


def solarize(levels: Tensor, threshold: Tensor) -> Tensor:
    """Levels inverted from a threshold up."""
    return torch.where(levels < threshold, levels, 255 - levels)


def contrast(levels: Tensor, factor: Tensor) -> Tensor:
    """Levels multiplied."""
    return levels * factor


def brightness(levels: Tensor, addition: Tensor) -> Tensor:
    """The same added to all levels."""
    return levels + addition


def sharpness(levels: Tensor, factor: Tensor) -> Tensor:
    """Away from a smoothed image (factor 0) through the image itself (1) to a sharpened one."""
    smooth: Tensor = 255 * v2.functional.adjust_sharpness(levels / 255, 0.0)
    return smooth + factor * (levels - smooth)


def rotate(levels: Tensor, degrees: Tensor) -> Tensor:
    """Turned about the middle."""
    angle = torch.deg2rad(degrees)
    return taken(levels, xx=angle.cos(), xy=-angle.sin(), yx=angle.sin(), yy=angle.cos())


def shear_x(levels: Tensor, slope: Tensor) -> Tensor:
    """Rows shifted, each by `slope` pixels more than the one above it."""
    return taken(levels, xy=slope)


def shear_y(levels: Tensor, slope: Tensor) -> Tensor:
    """Columns shifted, each by `slope` pixels more than the one before it."""
    return taken(levels, yx=slope)


def translate_x(levels: Tensor, share: Tensor) -> Tensor:
    """Shifted sideways by a share of the width."""
    return taken(levels, x=share)


def translate_y(levels: Tensor, share: Tensor) -> Tensor:
    """Shifted up or down by a share of the height."""
    return taken(levels, y=share)


def taken(levels: Tensor, **given: Tensor) -> Tensor:
    """Each pixel taken, bilinearly, from where an affine map of its place leads, black where that is outside.

    The map goes from `(X, Y)`, in pixels from the middle, to `(xx X + xy Y + x W, yx X + yy Y + y H)`; what is not given is as in the
    identity.
    """
    count, _, height, width = levels.shape
    one, zero = levels.new_ones(count), levels.new_zeros(count)
    numbers = {
        "xx": one,
        "xy": zero,
        "x": zero,
        "yx": zero,
        "yy": one,
        "y": zero,
        **{name: value.flatten() for name, value in given.items()},
    }
    # Torch counts in half widths and half heights.
    in_halves = {"xy": height / width, "yx": width / height, "x": 2, "y": 2}
    theta = torch.stack([value * in_halves.get(name, 1) for name, value in numbers.items()], 1).view(count, 2, 3)
    grid = functional.affine_grid(theta, list(levels.shape), align_corners=False)
    return functional.grid_sample(levels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


OPERATIONS = {
    "auto-contrast": Operation(auto_contrast),
    "equalize": Operation(equalize),
    "rotate": Operation(rotate, -30, 30),
    "posterize": Operation(posterize, 0, 4),
    "solarize": Operation(solarize, 0, 255),
    "contrast": Operation(contrast, 0.1, 1.9),
    "brightness": Operation(brightness, -0.9 * 255, 0.9 * 255),
    "sharpness": Operation(sharpness, 0.1, 1.9),
    "shear-x": Operation(shear_x, -0.3, 0.3),
    "shear-y": Operation(shear_y, -0.3, 0.3),
    "translate-x": Operation(translate_x, -0.5, 0.5),
    "translate-y": Operation(translate_y, -0.5, 0.5),
}
