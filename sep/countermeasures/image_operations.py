"""One of twelve operations on each image, of random strength: the last of UEraser's distortions.

UEraser's authors (Qin et al. 2023, "Learning the Unlearnable") call `TrivialAugment` of the library kornia, 0.6.12 in their benchmark
APBench. Operations and ranges are those of that policy, computed as kornia does: brightness is added, contrast is multiplied, shifted-in
pixels are black, and posterising to no bits leaves nothing. The ranges are narrower than those of `wide_space`: up to 30
degrees instead of 135, a slope of 0.3 instead of 0.99, half of the side instead of all of it. If kornia is installed, a test holds the
pixels to it. Two things differ: fractions of levels are rounded, not cut off, before equalizing, and a flat channel is not stretched to
black.

Two more things differ where the library falls short of its own policy. That version rotates and shifts in one direction only, and takes
the slope for degrees, so that its shears are hardly visible. It also draws one operation for a whole batch; here every image has its own,
as in Mueller & Hutter 2021 ("TrivialAugment").

Legend: N images of a batch, C channels, H W pixels. Every operation maps float levels `(N, C, H, W)` and strengths `(N, 1, 1, 1)` to
levels of the same shape; levels out of range are clipped at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from sep.augment import beside
from sep.countermeasures.preprocessing import as_stored

Change = Callable[[Tensor, Tensor], Tensor]


class Operation(NamedTuple):
    """An operation and the range of its strength, which is drawn uniformly."""

    change: Change
    low: float = 0.0
    high: float = 0.0


def one_operation_each(levels: Tensor, generator: torch.Generator) -> Tensor:
    """Apply to each image one operation of `OPERATIONS`, all equally likely: `(B, C, H, W)` float levels to the same."""
    operations = [*OPERATIONS.values()]
    which = torch.randint(len(operations), (len(levels),), generator=generator)
    low, range_ = torch.tensor([[each.low, each.high - each.low] for each in operations])[which].unbind(1)
    strengths = low + range_ * torch.rand(len(levels), generator=generator)
    return each_by_its_own(levels, [operation.change for operation in operations], which, strengths).clamp(0, 255)


def each_by_its_own(levels: Tensor, changes: Sequence[Change], which: Tensor, strengths: Tensor) -> Tensor:
    """Make to each image the change that `which` says, `(B,)`, by its strength, `(B,)`, both on the CPU; the same changes together."""
    order, counts = which.argsort(stable=True), which.bincount(minlength=len(changes)).tolist()
    images, given = levels[beside(levels, order)], beside(levels, strengths[order]).view(-1, 1, 1, 1)
    groups = zip(changes, torch.split(images, counts), torch.split(given, counts), strict=True)
    after = [change(group, own) for change, group, own in groups if len(group)]
    return torch.cat(after)[beside(levels, order.argsort())] if after else levels


def auto_contrast(levels: Tensor, _: Tensor) -> Tensor:
    """Stretch each channel to the whole range."""
    stretched: Tensor = v2.functional.autocontrast(levels / 255)
    return 255 * stretched


def equalize(levels: Tensor, _: Tensor) -> Tensor:
    """Spread the levels of each channel so that all are about equally frequent."""
    spread: Tensor = v2.functional.equalize(as_stored(levels))
    return spread.float()


def posterize(levels: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest bits, as many as the rounded strength says."""
    apart = 2 ** (8 - bits.round())
    return levels.div(apart).floor() * apart


def solarize(levels: Tensor, threshold: Tensor) -> Tensor:
    """Invert levels from a threshold up."""
    return torch.where(levels < threshold, levels, 255 - levels)


def contrast(levels: Tensor, factor: Tensor) -> Tensor:
    """Multiply all levels."""
    return levels * factor


def brightness(levels: Tensor, addition: Tensor) -> Tensor:
    """Add a constant to all levels."""
    return levels + addition


def sharpness(levels: Tensor, factor: Tensor) -> Tensor:
    """Blend a smoothed image (factor 0) with the image itself (1), or go beyond it to a sharpened one."""
    smooth = smoothed(levels)
    return smooth + factor * (levels - smooth)


def smoothed(levels: Tensor) -> Tensor:
    """Smooth by a 3x3 kernel of ones around a five."""
    smooth = levels.clone()  # at the edges, as in torchvision, whose own function sends its weights from the CPU and waits for a GPU
    smooth[:, :, 1:-1, 1:-1] = (9 * functional.avg_pool2d(levels, 3, stride=1) + 4 * levels[:, :, 1:-1, 1:-1]) / 13
    return smooth


def rotate(levels: Tensor, degrees: Tensor, mode: str = "bilinear") -> Tensor:
    """Rotate about the centre."""
    angle = torch.deg2rad(degrees)
    return taken(levels, mode, xx=angle.cos(), xy=-angle.sin(), yx=angle.sin(), yy=angle.cos())


def shear_x(levels: Tensor, slope: Tensor) -> Tensor:
    """Shift rows, each by `slope` pixels more than the row above it."""
    return taken(levels, xy=slope)


def shear_y(levels: Tensor, slope: Tensor) -> Tensor:
    """Shift columns, each by `slope` pixels more than the column before it."""
    return taken(levels, yx=slope)


def translate_x(levels: Tensor, share: Tensor) -> Tensor:
    """Shift sideways by a share of the width."""
    return taken(levels, x=share)


def translate_y(levels: Tensor, share: Tensor) -> Tensor:
    """Shift up or down by a share of the height."""
    return taken(levels, y=share)


def taken(levels: Tensor, mode: str = "bilinear", **given: Tensor) -> Tensor:
    """Sample each pixel, bilinearly or the nearest one, at the place that an affine map sends it to; outside the image all is black.

    The map sends `(X, Y)`, in pixels from the centre, to `(xx X + xy Y + x W, yx X + yy Y + y H)`. Coefficients not given are those of
    the identity.
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
    return functional.grid_sample(levels, grid, mode=mode, padding_mode="zeros", align_corners=False)


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
