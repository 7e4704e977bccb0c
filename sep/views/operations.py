"""Views that are no codecs, as a gradient passes them.

Legend: B images, H W pixels. Every function maps whole float levels `(B, 3, H, W)` and a look to whole levels. All images of a call share
its draws, so that no image depends on another or on how many are looked at together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sep.augment import beside
from sep.countermeasures import preprocessing
from sep.countermeasures.contrastive import distorted
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
    coin, scale, top, left = torch.rand(4, generator=look.draws).tolist()
    if coin < 0.5:
        return levels
    factor = 1 + (LARGEST - 1) * scale
    resized = round(height * factor), round(width * factor)
    (seen,) = cut(levels, [Window(resized, (round(top * (resized[0] - height)), round(left * (resized[1] - width))))], (height, width))
    return seen


def simclr(levels: Tensor, look: Look, percent: int) -> Tensor:
    """Distort as contrastive learning does, at a percentage of its full strength: a window, a flip, colours, grey.

    On a GPU the gradient of the sampling is added up in no fixed order.
    """
    return as_levels(distorted(levels.float(), look.draws, percent / 100, None if look.each else 1)).to(levels.dtype)


class Window(NamedTuple):
    """A part of an image that was resized.

    Attributes:
        resized: height and width of the whole image after resizing.
        start: first row and column of the window.
    """

    resized: tuple[int, int]
    start: tuple[int, int]


def cut(levels: Tensor, windows: Sequence[Window], size: tuple[int, int]) -> list[Tensor]:
    """Resize images `(B, 3, H, W)` by torch's antialiased bilinear filter and cut windows out, `(B, 3, *size)` each.

    As a product with matrices, because the gradient of torch's own function is added up in no fixed order on a GPU, and is slow on a CPU.
    All windows are cut by one product along the rows, so that their gradients come back as one.
    """
    across = torch.cat([resize_weights(levels.shape[3], each.resized[1], each.start[1], size[1]) for each in windows])
    parts = torch.split(levels @ beside(levels, across.to(levels.dtype)).T, size[1], dim=3)
    down = [resize_weights(levels.shape[2], each.resized[0], each.start[0], size[0]).to(levels.dtype) for each in windows]
    return [as_levels(beside(levels, rows) @ part) for rows, part in zip(down, parts, strict=True)]


def resize_weights(before: int, after: int, first: int, count: int) -> Tensor:
    """Return some rows of the weights of a resize along one side, `(count, before)` float64: a triangle around the place of each pixel."""
    scale = before / after
    support = max(scale, 1.0)
    centres = (torch.arange(first, first + count, dtype=torch.float64) + 0.5)[:, None] * scale
    places = (centres - support).floor() + torch.arange(math.ceil(2 * support) + 1, dtype=torch.float64)
    weights = (1 - (places + 0.5 - centres).abs() / support).clamp_(min=0) * (places >= 0) * (places < before)
    weights /= weights.sum(1, keepdim=True)
    return torch.zeros(count, before, dtype=torch.float64).scatter_add_(1, places.clamp_(0, before - 1).long(), weights)
