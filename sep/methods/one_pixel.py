"""One-pixel shortcuts (Wu et al. 2022, "One-Pixel Shortcut: On the Learning Preference of Deep Neural Networks").

Legend: B images, C channels, H W pixels, K protected classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from sep.budget import Budget
from sep.methods.request import Request
from sep.pictures import one_size


def single_pixel(_: int, shape: Sequence[int]) -> Budget:
    """Return the budget of one pixel, which may become any colour."""
    return Budget("pixels", 1)


def moments(images: Tensor, classes: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return sums over the images of each class, whole numbers that can be added over shards in any order.

    Args:
        images: `(B, C, H, W)` uint8.
        classes: `(B,)`, 0 to K-1.
        num_classes: K.

    Returns:
        `(K,)` counts, `(K, C, H, W)` sums of the levels and `(K, C, C, H, W)` sums of products of two channels' levels, all int64.
    """
    _, channels, height, width = images.shape
    sums = torch.zeros(num_classes, channels, height, width, dtype=torch.int64)
    products = torch.zeros(num_classes, channels, channels, height, width, dtype=torch.int64)
    for label in torch.unique(classes).tolist():
        own = images[classes == label].int()
        sums[label] = own.sum(0)
        for a, b in product(range(channels), repeat=2):
            products[label, a, b] = (own[:, a] * own[:, b]).sum(0)
    return torch.bincount(classes, minlength=num_classes), sums, products


def search(counts: Tensor, sums: Tensor, products: Tensor) -> Tensor:
    """Return the pixel and colour of each class that its clean images are far from, all equally: `(K, 2 + C)` int64, row, column, colour.

    They maximise the paper's objective (equation 2), `E[d] / Var[d]` with `d = sum_c |x_c - colour_c|` at the pixel. The colour is a
    corner of the cube of colours, so that d is linear in x. A variance below one squared level counts as one. One thing deviates from the
    paper: no two classes get the same pixel and colour, and the classes choose in order, as in the authors' code. That code divides by the
    standard deviation of `|x_c - colour_c|` over images and channels alike, not by the variance of the sum over channels, and may choose
    other pixels.

    Args:
        counts: see `moments`, of the whole training set; every class has an image.
        sums: see `moments`.
        products: see `moments`.
    """
    number = counts.double()[:, None, None, None]
    mean = sums / number
    covariance = products / number[..., None] - mean[:, :, None] * mean[:, None]
    corners = torch.tensor(list(product((0, 255), repeat=sums.shape[1])))
    signs = torch.where(corners == 0, 1.0, -1.0).double()  # |x - 0| = x, |x - 255| = 255 - x
    distance = torch.einsum("qc,kchw->kqhw", signs, mean) + corners.sum(1)[:, None, None]
    variance = torch.einsum("qc,qd,kcdhw->kqhw", signs, signs, covariance).clamp_min(1)
    score = (distance / variance).flatten(1)
    chosen: list[Tensor] = []
    for own in score:
        place = int(own.argmax())
        score[:, place] = -1
        corner, row, column = torch.unravel_index(torch.tensor(place), distance.shape[1:])
        chosen.append(torch.cat([row[None], column[None], corners[corner]]))
    return torch.stack(chosen)


def one_pixel(request: Request) -> Tensor:
    """Set one pixel of each image, that of its class, to the colour of its class.

    Args:
        request: with the result of `search` as `prepared`.

    Returns:
        Protected images, `(B, C, H, W)` uint8; an image whose pixel has that colour already stays as it is.
    """
    assert request.prepared is not None
    found, protected = request.prepared[request.classes], one_size(request.images).clone()
    protected[torch.arange(len(protected)), :, found[:, 0], found[:, 1]] = found[:, 2:].to(torch.uint8)
    return protected
