"""Features of an image for a linear detector: statistics that a protection changes and the content of a picture hardly does.

Legend: B images, C channels, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sep.views.codecs import BLOCK, dct_basis

MOST, STEP = 4, 2  # a residual is counted in steps of two levels, up to four of them


def spectrum(images: Tensor) -> Tensor:
    """Return the log of an image's mean power at each frequency of its 8 x 8 blocks, by JPEG's cosine transform.

    Args:
        images: `(B, C, H, W)` uint8, at least 8 x 8 pixels; what exceeds whole blocks is left out.

    Returns:
        `(B, 64 C)` float32.
    """
    blocks = images.float().unfold(2, BLOCK, BLOCK).unfold(3, BLOCK, BLOCK).flatten(2, 3).flatten(3)
    return (blocks @ dct_basis(torch.float32, images.device).T).square().mean(2).add(1).log().flatten(1)


def residual(images: Tensor) -> Tensor:
    """Return how often the residuals of neighbours take which two values: what remains of an image without its blur.

    After Pevny et al. 2010, "Steganalysis by Subtractive Pixel Adjacency Matrix", and Fridrich and Kodovsky 2012, "Rich Models for
    Steganalysis of Digital Images": a residual is quantised and truncated, and pairs are counted. Of their many residuals this takes one,
    the difference of a value from the mean of the 3 x 3 around it. Neighbours are to the right, below, and in the next channel.

    Args:
        images: `(B, C, H, W)` uint8.

    Returns:
        `(B, 3 * 81)` float32, roots of the shares of all pairs, of each kind of neighbours.
    """
    levels = images.float()
    blurred = functional.avg_pool2d(functional.pad(levels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    values = ((levels - blurred) / STEP).round().clamp(-MOST, MOST).to(torch.int64) + MOST
    pairs = [(values.narrow(axis, 0, values.shape[axis] - 1), values.narrow(axis, 1, values.shape[axis] - 1)) for axis in (3, 2, 1)]
    return torch.cat([_shares(*pair).sqrt() for pair in pairs], 1)


def _shares(first: Tensor, second: Tensor) -> Tensor:
    """Return the share of each pair of values, `(B, 81)`."""
    number = 2 * MOST + 1
    pairs = (first * number + second).flatten(1)
    counts = torch.zeros(len(pairs), number**2, device=pairs.device)
    return counts.scatter_add_(1, pairs, torch.ones_like(pairs, dtype=torch.float32)) / pairs.shape[1]
