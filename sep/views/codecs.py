"""JPEG and WebP as a gradient passes them.

Legend: B images, H W pixels, P colour planes, h w blocks of 8 x 8 pixels. Images are whole float levels `(B, 3, H, W)`.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from sep.augment import beside
from sep.countermeasures import preprocessing
from sep.views.registry import Look
from sep.views.rounding import passed, rounded, slope

BLOCK = 8
TIE = 1e-4  # sums so little below a half are halves, so that the order of additions decides no rounding
# The tables of ITU T.81, annex K, row by row; libjpeg scales them by the quality.
LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *(4 * ((99,) * 8,)),
)


def jpeg(levels: Tensor, look: Look, quality: int) -> Tensor:
    """Compress and decode as libjpeg does: 4:2:0, its tables, an 8x8 DCT and smooth upsampling, all in batches on the device.

    Backward, each coefficient gets the slope of a dithered rounding: next to nothing where the levels that images may still move cannot
    carry it over a boundary. All other roundings pass gradients as they are.
    """
    height, width = levels.shape[2:]
    red, green, blue = _extended(levels, 2 * BLOCK).unbind(1)
    luma = rounded(0.299 * red + 0.587 * green + 0.114 * blue)
    # In libjpeg's arithmetic the halves of chroma are rounded down.
    cb = rounded(-0.168735892 * red - 0.331264108 * green + 0.5 * blue + 128, 0.5 - 1e-5)
    cr = rounded(0.5 * red - 0.418687589 * green - 0.081312411 * blue + 128, 0.5 - 1e-5)
    luma = _coded(luma[:, None], _steps(LUMA, quality, luma), look.eps_levels)[:, 0, :height, :width]
    rows, columns = (height + 1) // 2, (width + 1) // 2
    # libjpeg widens a picture before it halves chroma, but its height only to an even number; halved rows are repeated.
    halved = _extended(_halved(torch.stack([cb, cr], 1))[:, :, :rows], BLOCK)
    chroma = _coded(halved, _steps(CHROMA, quality, luma), look.eps_levels)[..., :rows, :columns] - 128
    cb, cr = _doubled(chroma)[..., :height, :width].unbind(1)
    planes = luma + rounded(1.402 * cr), luma + rounded(-0.344136286 * cb - 0.714136286 * cr), luma + rounded(1.772 * cb)
    return torch.stack(planes, 1).clamp(0, 255)


def webp(levels: Tensor, _: Look, quality: int) -> Tensor:
    """Compress and decode by the real codec, on the CPU, so that the host waits for a GPU, and the GPU for the host.

    Backward, luma passes as it is and chroma as the mean of 2 x 2 pixels, in which WebP stores it. A WebP block is coded as the difference
    from a prediction by its neighbours, so that the reach of a coefficient is not known as it is in JPEG.
    """
    coded = preprocessing.webp(preprocessing.as_stored(levels.detach()).cpu(), quality)
    red, green, blue = levels.unbind(1)
    luma = (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]
    height, width = levels.shape[2:]
    chroma = functional.avg_pool2d(_extended(levels - luma, 2), 2)
    passes = luma + chroma.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :height, :width]
    return passed(passes, coded.to(levels))


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # a gradient may need what a test made first
def dct_basis(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the orthonormal DCT, a row for each coefficient and a column for each pixel of a block: `(64, 64)`."""
    places = torch.arange(BLOCK, dtype=torch.float64)
    waves = torch.cos(math.pi / BLOCK * places[:, None] * (places + 0.5)) * math.sqrt(2 / BLOCK)
    waves[0] /= math.sqrt(2)
    return torch.kron(waves, waves).to(device, dtype)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _scaled(table: tuple[tuple[int, ...], ...], quality: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    steps = (torch.tensor(table).flatten() * scale + 50).div(100, rounding_mode="floor").clamp(1, 255)
    return steps.to(device, dtype)


def _steps(table: tuple[tuple[int, ...], ...], quality: int, like: Tensor) -> Tensor:
    """Return the 64 steps of the coefficients."""
    return _scaled(table, quality, like.dtype, like.device)


def _coded(planes: Tensor, steps: Tensor, eps_levels: int) -> Tensor:
    """Return planes `(B, P, H, W)`, in whole blocks, after transform, quantisation and the way back."""
    count, number, height, width = planes.shape
    cut = (count, number, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    blocks = (planes - 128).reshape(cut).transpose(3, 4).reshape(-1, BLOCK**2)
    basis = dct_basis(planes.dtype, planes.device)
    values = (blocks @ basis.T) / steps
    with torch.no_grad():
        eighths = (values.abs() * (8 * steps) + TIE).round_()  # libjpeg's transform gives whole eighths
        after = values.sign() * (eighths / (8 * steps) + (0.5 + TIE)).floor_()  # halves away from zero
        reach = eps_levels * basis.abs().sum(1) / (2 * steps)
        passing = slope(values, after, reach) if values.requires_grad else None
    coefficients = passed(values, after, passing) * steps
    decoded = rounded(coefficients @ basis + 128, 0.5 + TIE).clamp(0, 255)
    back = (count, number, height // BLOCK, width // BLOCK, BLOCK, BLOCK)
    return decoded.reshape(back).transpose(3, 4).reshape(planes.shape)


def _extended(planes: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column until height and width are multiples."""
    for side in (2, 3):
        lacking = -planes.shape[side] % multiple
        if lacking:
            last = planes.narrow(side, -1, 1)
            planes = torch.cat([planes, last.expand(*(lacking if axis == side else -1 for axis in range(4)))], side)
    return planes


def _halved(planes: Tensor) -> Tensor:
    """Return the means of 2 x 2 pixels; halves and quarters are rounded down and up in turns, as libjpeg does."""
    means = functional.avg_pool2d(planes, 2)
    return rounded(means, _shifts((0.25, 0.5), means))


def _doubled(planes: Tensor) -> Tensor:
    """Return planes of twice the size, each pixel 9/16, 3/16, 3/16 and 1/16 of the four nearest, rounded as libjpeg does.

    Planes of one or two columns are repeated instead, as libjpeg repeats them. In slices, because the gradient of torch's own
    interpolation is added up in no fixed order on a GPU.
    """
    if planes.shape[3] <= 2:
        return planes.repeat_interleave(2, 2).repeat_interleave(2, 3)
    for side in (2, 3):
        before = torch.cat([planes.narrow(side, 0, 1), planes.narrow(side, 0, planes.shape[side] - 1)], side)
        after = torch.cat([planes.narrow(side, 1, planes.shape[side] - 1), planes.narrow(side, -1, 1)], side)
        pairs = torch.stack([0.75 * planes + 0.25 * before, 0.75 * planes + 0.25 * after], side + 1)
        planes = pairs.flatten(side, side + 1)
    return rounded(planes, _shifts((8 / 16, 7 / 16), planes))


def _shifts(pair: tuple[float, float], planes: Tensor) -> Tensor:
    """Return what is added before levels are cut off, by turns along a row: `(W,)`, of an even number of columns."""
    return beside(planes, torch.tensor(pair, dtype=planes.dtype).repeat(planes.shape[3] // 2))
