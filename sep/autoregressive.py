"""Autoregressive perturbations (Sandoval-Segura et al. 2022, "Autoregressive Perturbations for Data Poisoning").

Legend: B images, C channels, H W pixels, K protected classes, P processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from sep.budget import Budget, whole_levels
from sep.perturbation import Request, added

WINDOW = 3  # pixels a side; the last of a window follows from the eight before it
ORDER = WINDOW**2 - 1
EDGE = WINDOW - 1  # rows above and columns to the left that a field starts from
CANDIDATES = 1000  # processes that are tried at a time
STEADY = 4.0  # a field may be so many times stronger or weaker in one corner than in the opposite one


def squared_levels(_: int, shape: Sequence[int]) -> Budget:
    """The paper's L2 ball, of radius 1 for images of 32 x 32 and values from 0 to 1.

    For other sizes it grows with the root of the number of pixels, which leaves the mean square of a change as it is.
    """
    _, height, width = shape
    return Budget("l2", 255**2 * height * width // 32**2)


def field(coefficients: Tensor, start: Tensor) -> Tensor:
    """What processes make of their starts: each value is `sum_k b_k x_k` over the eight others of the window that ends with it.

    Args:
        coefficients: `(..., 8)`, of the others in a window row by row.
        start: `(..., H + 2, W + 2)`, of which the first two rows and columns are taken.

    Returns:
        `(..., H, W)`, without the start.
    """
    values = start.clone()
    for row in range(EDGE, start.shape[-2]):
        for column in range(EDGE, start.shape[-1]):
            window = values[..., row - EDGE : row + 1, column - EDGE : column + 1].flatten(-2)[..., :ORDER]
            values[..., row, column] = (coefficients * window).sum(-1)
    return values[..., EDGE:, EDGE:]


@lru_cache(maxsize=1)  # the same for every shard of a release
def processes(count: int, height: int, width: int, seed: int) -> Tensor:
    """Random processes `(P, 8)` whose fields neither die out nor grow without bound over an image.

    As in the paper, coefficients are drawn normally and divided by their sum, and those whose fields diverge are drawn again. Deviates
    from it in what that means, which the paper leaves to its code (a field's last corner is at most four times stronger or weaker than its
    first), and in that no process is left out for resembling another.
    """
    generator, kept = torch.Generator().manual_seed(seed), torch.empty(0, ORDER, dtype=torch.float64)
    while len(kept) < count:
        drawn = torch.randn(CANDIDATES, ORDER, generator=generator, dtype=torch.float64)
        drawn /= drawn.sum(1, keepdim=True)
        start = torch.randn(CANDIDATES, height + EDGE, width + EDGE, generator=generator, dtype=torch.float64)
        made = field(drawn, start)
        first, last = (part.square().mean((1, 2)) for part in (made[:, : height // 2, : width // 2], made[:, height // 2 :, width // 2 :]))
        ratio = (last / first).sqrt()
        kept = torch.cat([kept, drawn[(ratio < STEADY) & (ratio > 1 / STEADY)]])  # what has grown to infinity or nothing fails both
    return kept[:count]


def autoregressive(request: Request) -> Tensor:
    """Each image with the field that its class's processes, one a channel, make of a start of its own, scaled to the budget.

    Deviates from the paper in whole levels, and in how processes are chosen: see `processes`.

    Args:
        request: see there; it needs no preparation, and an image's field depends on its own seed and the release's.

    Returns:
        Protected images, `(B, C, H, W)` uint8.
    """
    _, channels, height, width = request.images.shape
    drawn = processes(request.num_classes * channels, height, width, request.seed).view(request.num_classes, channels, ORDER)
    made = field(drawn[request.classes], request.own(channels, height + EDGE, width + EDGE))
    return added(request.images, whole_levels(made, request.budget.limit))
