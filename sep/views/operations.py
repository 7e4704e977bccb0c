"""Views that are no codecs, as a gradient passes them.

Legend: B images, H W pixels. Every function maps whole float levels `(B, 3, H, W)` and a look to whole levels. All images of a call share
its draws, so that no image depends on another or on how many are looked at together.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from sep.augment import beside
from sep.countermeasures import preprocessing
from sep.countermeasures.distortion import warped
from sep.views.registry import Look
from sep.views.rounding import as_levels, passed, slope

EDGE = math.exp(-0.5)  # of a Gaussian with a deviation of one pixel, one pixel away
BAND = 0.1  # width of a dropped band, in waves a pixel; the finest wave along a side has 0.5
LOWEST, HIGHEST = 0.05, 0.5  # of a dropped band: coarser waves carry what a picture shows
LARGEST = 1.75  # times the size, of a random resize


def blur(levels: Tensor, _: Look) -> Tensor:
    """Blur by a 3x3 Gaussian with a standard deviation of one pixel, mirrored at the edges; not along a side of one pixel."""
    for side in (2, 3):  # in slices, because the gradient of torch's mirrored padding is added up in no fixed order on a GPU
        count = levels.shape[side]
        if count == 1:
            continue
        around = torch.cat([levels.narrow(side, 1, 1), levels, levels.narrow(side, count - 2, 1)], side)
        levels = (around.narrow(side, 0, count) + around.narrow(side, 2, count)) * EDGE + around.narrow(side, 1, count)
        levels = levels / (1 + 2 * EDGE)
    return as_levels(levels)


def gray(levels: Tensor, _: Look) -> Tensor:
    """Replace all three channels by luma."""
    red, green, blue = levels.unbind(1)
    luma = 0.2989 * red + 0.587 * green + 0.114 * blue
    stored = preprocessing.grayscale(preprocessing.as_stored(levels.detach()))[:, 0]
    return passed(luma, stored.to(luma.dtype))[:, None].expand_as(levels)


def bits(levels: Tensor, look: Look, number: int) -> Tensor:
    """Round to `2**number` equally spaced levels. Backward, a level that cannot be carried over a boundary gets next to nothing."""
    apart = 255 / (2**number - 1)
    with torch.no_grad():
        values = levels / apart
        after = values.round()
        passing = slope(values, after, look.eps_levels / (2 * apart)) if levels.requires_grad else None
    return passed(levels, (after * apart).round_(), passing)


def warp(levels: Tensor, look: Look) -> Tensor:
    """Take every pixel from up to two pixels away, as the countermeasure `random-warp` does.

    On a GPU the gradient of the sampling is added up in no fixed order.
    """
    return as_levels(warped(levels, torch.rand(1, *levels.shape[2:], 2, generator=look.draws)))


def noise(levels: Tensor, look: Look, number: int) -> Tensor:
    """Add normal noise with a standard deviation of so many levels."""
    drawn = number * torch.randn(1, *levels.shape[1:], generator=look.draws)
    return as_levels(levels + beside(levels, drawn))


def band_drop(levels: Tensor, look: Look) -> Tensor:
    """Remove the waves of a random band of lengths, of all directions."""
    height, width = levels.shape[2:]
    low = LOWEST + (HIGHEST - BAND - LOWEST) * float(torch.rand((), generator=look.draws))
    rate = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width))
    kept = beside(levels, ((rate < low) | (rate >= low + BAND)).to(levels.dtype))
    return as_levels(torch.fft.irfft2(torch.fft.rfft2(levels) * kept, s=(height, width)))


def resize_crop(levels: Tensor, look: Look) -> Tensor:
    """See half of the looks as they are, and the others enlarged by up to 1.75 times and cut at random to the size that networks see."""
    height, width = levels.shape[2:]
    draws = look.draws
    coin, scale, top, left = torch.rand(4, generator=draws).tolist()
    if coin < 0.5:
        return levels
    factor = 1 + (LARGEST - 1) * scale
    rows, columns = (beside(levels, _resampled(side, round(side * factor), levels.dtype)) for side in (height, width))
    first, start = round(top * (len(rows) - height)), round(left * (len(columns) - width))
    return as_levels(rows[first : first + height] @ (levels @ columns[start : start + width].T))


def _resampled(before: int, after: int, dtype: torch.dtype) -> Tensor:
    """Return the weights of torch's antialiased bilinear resize along one side, `(after, before)`.

    As a matrix, because the gradient of torch's own function is added up in no fixed order on a GPU, and because a crop then costs less.
    """
    weights = functional.interpolate(torch.eye(before, dtype=dtype)[None, None], (after, before), mode="bilinear", antialias=True)
    return weights[0, 0]
