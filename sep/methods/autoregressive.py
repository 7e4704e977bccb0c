"""Autoregressive perturbations (Sandoval-Segura et al. 2022, "Autoregressive Perturbations for Data Poisoning").

Legend: B images, C channels, H W pixels, K protected classes, P processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from sep.budget import Budget, whole_levels
from sep.methods.request import Request, added
from sep.pictures import one_size

WINDOW = 3  # pixels a side; the last pixel of a window follows from the eight before it
ORDER = WINDOW**2 - 1
EDGE = 4  # rows above and columns to the left that are cut off: the start, and as many that still resemble it
CANDIDATES = 1000  # processes drawn at a time; one or two in a hundred do not diverge
SPARE = 60  # processes beyond the number of classes, so that the most unlike can be chosen
SIDE = 32  # pixels a side of the fields a process is first tried with
STRONGEST = 50 / math.sqrt(3 * SIDE**2)  # root mean square of a field: the authors' code allows a norm of 50; its start has 55


def squared_levels(_: int, shape: Sequence[int]) -> Budget:
    """Return the paper's L2 ball, of radius 1 for images of 32 x 32 and values from 0 to 1.

    For other sizes the radius grows with the root of the number of pixels, so that the mean square of a change stays the same.
    """
    _, height, width = shape
    return Budget("l2", 255**2 * height * width // 32**2)


def field(coefficients: Tensor, start: Tensor) -> Tensor:
    """Continue starts by processes: each value is `sum_k b_k x_k` over the eight other values of the window that ends with it.

    Args:
        coefficients: `(..., 8)`, of the other values in a window, row by row.
        start: `(..., H + 4, W + 4)`; only its first two rows and columns matter.

    Returns:
        `(..., H, W)`, without the edge.
    """
    values = start.clone()
    for row in range(WINDOW - 1, start.shape[-2]):
        _continue(coefficients, values, row)
    return values[..., EDGE:, EDGE:]


def _continue(coefficients: Tensor, values: Tensor, row: int) -> None:
    """Continue processes by one row, in place."""
    before = WINDOW - 1
    for column in range(before, values.shape[-1]):
        window = values[..., row - before : row + 1, column - before : column + 1].flatten(-2)[..., :ORDER]
        values[..., row, column] = (coefficients * window).sum(-1)


def steady(drawn: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Return the processes whose fields do not diverge, with those fields. Most diverge within a few rows, and are left there.

    Args:
        drawn: `(P, C, 8)`.
        start: `(P, C, H + 4, W + 4)`, which is written over.

    Returns:
        `(Q, C, 8)` and `(Q, C, H, W)`.
    """
    hopeless = 2 * STRONGEST**2 * start[0, :, EDGE:, EDGE:].numel()  # a sum of squares; twice the limit, as sums are rounded
    for row in range(WINDOW - 1, start.shape[-2]):
        _continue(drawn, start, row)
        going = start[..., EDGE : row + 1, EDGE:].square().sum((1, 2, 3)) <= hopeless  # false also for NaN
        drawn, start = drawn[going], start[going]
    made = start[..., EDGE:, EDGE:]
    limited = made.square().mean((1, 2, 3)).sqrt() <= STRONGEST
    return drawn[limited], made[limited]


def answer(coefficients: Tensor, fields: Tensor) -> Tensor:
    """Return the response to fields of the filter to which a process's own fields give zero, relative to their root mean square.

    Args:
        coefficients: `(C, 8)`, of one process.
        fields: `(B, C, H, W)`.

    Returns:
        `(B,)`, the mean of the positive part over all places.
    """
    kernel = torch.cat([coefficients, -coefficients.new_ones(len(coefficients), 1)], 1).view(1, -1, WINDOW, WINDOW)
    return functional.conv2d(fields, kernel).relu().mean((1, 2, 3)) / fields.square().mean((1, 2, 3)).sqrt()


@lru_cache(maxsize=1)  # the same for every shard of a release
def processes(count: int, channels: int, height: int, width: int, seed: int) -> Tensor:
    """Return random processes `(P, C, 8)`, coefficients for each channel, whose fields do not grow and whose filters tell them apart.

    As in the paper (appendix A.3), coefficients are drawn normally and divided by their sum, and a process counts if its fields do not
    diverge and the filters of the others respond to them. This excludes slow fields, to which no filter responds and which a network
    hardly notices beside an image. One thing deviates from the paper: the processes that are most unlike are chosen from a number of
    candidates, each the one whose weakest response with the chosen ones is strongest. The authors draw until responses reach 10 (with a
    hundred classes 3).
    """
    generator, found = torch.Generator().manual_seed(seed), torch.empty(0, channels, ORDER, dtype=torch.float64)
    fields = torch.empty(0, channels, height, width, dtype=torch.float64)
    while len(found) < count + SPARE:
        drawn = torch.randn(CANDIDATES, channels, ORDER, generator=generator, dtype=torch.float64)
        drawn /= drawn.sum(-1, keepdim=True)
        for size in ((min(height, SIDE), min(width, SIDE)), (height, width)):
            start = torch.randn(len(drawn), channels, *(side + EDGE for side in size), generator=generator, dtype=torch.float64)
            drawn, made = steady(drawn, start)
        found, fields = torch.cat([found, drawn]), torch.cat([fields, made])
    answers = torch.stack([answer(one, fields) for one in found])
    weakest = torch.minimum(answers, answers.T)
    chosen, least = [int(weakest.median(1).values.argmax())], torch.full((len(found),), math.inf, dtype=torch.float64)
    while len(chosen) < count:
        least = torch.minimum(least, weakest[chosen[-1]])
        least[chosen[-1]] = -1
        chosen.append(int(least.argmax()))
    return found[chosen]


def autoregressive(request: Request) -> Tensor:
    """Add to each image a field, scaled to the budget, that the processes of its class, one a channel, continue from a start of its own.

    Two things deviate from the paper: changes are whole levels, and processes are chosen differently, see `processes`.

    Args:
        request: without preparation; the field of an image depends on its own seed and the release's.

    Returns:
        Protected images, `(B, C, H, W)` uint8.
    """
    _, channels, height, width = one_size(request.images).shape
    drawn = processes(request.num_classes, channels, height, width, request.seed)
    made = field(drawn[request.classes], request.own(channels, height + EDGE, width + EDGE))
    return added(one_size(request.images), whole_levels(made, request.budget.limit))
