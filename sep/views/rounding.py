"""Roundings that a gradient passes: forward the rounding itself, backward what it does on average.

Legend: any shape.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

FAR = 9.0  # deviations; farther, densities would be denormal numbers, with which CPUs are slow
WIDE = 0.4  # steps: from here on a dithered rounding has slope 1 everywhere, to a few percent


class _Passed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, after: Tensor, slope: Tensor | None) -> Tensor:
        ctx.slope = slope
        return after.view_as(after)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return gradient if ctx.slope is None else gradient * ctx.slope, None, None


def passed(values: Tensor, after: Tensor, slope: Tensor | None = None) -> Tensor:
    """Return `after`, through which the gradient passes to `values` unchanged (straight-through), or times a slope."""
    result: Tensor = _Passed.apply(values, after.detach(), slope)
    return result


def rounded(values: Tensor, shift: Tensor | float = 0.5) -> Tensor:
    """Return whole numbers, halves upwards; a `shift` other than 1/2 rounds otherwise. The gradient passes."""
    with torch.no_grad():
        after = (values + shift).floor_()
    return passed(values, after)


def as_levels(values: Tensor) -> Tensor:
    """Return values as they would be stored, rounded and from 0 to 255. The gradient passes, also of a value that was out of range."""
    with torch.no_grad():
        after = values.round().clamp_(0, 255)
    return passed(values, after)


def slope(values: Tensor, after: Tensor, spread: Tensor | float) -> Tensor:
    """Return the mean slope of a rounding to whole numbers whose values are spread normally: `w = sum_k phi(d_k / s) / s`.

    A value that the spread does not carry over a boundary gets next to nothing, one beside a boundary more than 1. The mean over all
    values is 1.

    Args:
        values: before rounding.
        after: the same rounded.
        spread: `s`, the standard deviation.
    """
    spread = torch.as_tensor(spread, dtype=values.dtype, device=values.device)
    aside, narrow = (values - after).abs(), spread.clamp(max=WIDE)
    # Boundaries beyond the two nearest are more than three deviations away.
    near, far = (((0.5 - aside) / narrow).clamp_(max=FAR), ((0.5 + aside) / narrow).clamp_(max=FAR))
    density = (near.square_().mul_(-0.5).exp_() + far.square_().mul_(-0.5).exp_()) / (narrow * math.sqrt(2 * math.pi))
    return torch.where(spread < WIDE, density, 1.0)
