"""Budgets: how far an image may be changed, and the proof in integers that a released image keeps to it.

Tensors are handled by their own methods alone, so that budgets can be named and compared without torch.

Legend: B images, C channels, H W pixels; images are grey levels 0..255.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Norm = Literal["linf", "l2", "pixels"]
UNITS: dict[Norm, str] = {"linf": "levels", "l2": "squared levels", "pixels": "pixels"}


@dataclass(frozen=True)
class Budget:
    """The most that a method may change one image, as a whole number.

    Attributes:
        norm: linf: the largest change of a value; l2: the sum of the squares of all changes; pixels: the number of changed pixels.
        limit: the largest value allowed, in levels, squared levels or pixels.
    """

    norm: Norm
    limit: int

    def __str__(self) -> str:
        """Return the budget as papers write it: `8/255`, `L2 1.30` for values from 0 to 1, `1 pixel`."""
        if self.norm == "linf":
            return f"{self.limit}/255"
        if self.norm == "l2":
            return f"L2 {math.sqrt(self.limit) / 255:.2f}"
        return f"{self.limit} pixel{'s' if self.limit != 1 else ''}"


def largest_change(eps_levels: int, _: Sequence[int]) -> Budget:
    """Return the L-infinity ball, which is the same for images of any shape."""
    return Budget("linf", eps_levels)


def project(x: Tensor, clean: Tensor, eps_levels: int) -> Tensor:
    """Return `P(x) = clamp(clamp(x, x0 - eps, x0 + eps), 0, 255)` (method, section 4).

    Args:
        x: whole levels as floats, `(B, C, H, W)`.
        clean: the images `x0` at the centre of the ball, same shape.
        eps_levels: radius of the ball, in levels.
    """
    return x.clamp(clean - eps_levels, clean + eps_levels).clamp_(0, 255)


def linf_levels(protected: Tensor, clean: Tensor) -> Tensor:
    """Return the largest change of each image in whole levels, `(B,)` int, of uint8 images of equal shape `(B, ...)`."""
    assert protected.dtype == clean.dtype
    assert not protected.is_floating_point()
    return (protected.int() - clean.int()).abs().flatten(1).amax(1)


def psnr_db(protected: Tensor, clean: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each image in dB, `(B,)`, of uint8 images; infinite where nothing changed."""
    error = (protected.double() - clean.double()).square().flatten(1).mean(1)
    return 10 * (255.0**2 / error).log10()


def budget_used(protected: Tensor, clean: Tensor, norm: Norm) -> Tensor:
    """Return the size of each image's change in a norm, `(B,)` int, of uint8 images `(B, C, H, W)`."""
    if norm == "linf":
        return linf_levels(protected, clean)
    if norm == "l2":
        return (protected.long() - clean.long()).square().flatten(1).sum(1)
    return (protected != clean).any(1).flatten(1).sum(1)


def check_budget(protected: Tensor, clean: Tensor, budget: Budget) -> None:
    """Check uint8 images `(B, C, H, W)` against a budget.

    Raises:
        ValueError: an image exceeds it, or the shapes differ.
    """
    if protected.shape != clean.shape:
        raise ValueError(f"protected images have shape {tuple(protected.shape)}, clean ones {tuple(clean.shape)}")
    each = budget_used(protected, clean, budget.norm)
    if (each > budget.limit).any():
        worst = int(each.argmax())
        raise ValueError(f"image {worst} of {len(each)} changes by {int(each[worst])} {UNITS[budget.norm]}; the budget is {budget.limit}")


def whole_levels(change: Tensor, limit: int) -> Tensor:
    """Scale and round changes `(B, C, H, W)` to whole levels whose squares add up to almost `limit` for each image, and never to more.

    Rounding can lengthen a change, so the scale is reduced until the rounded change is within the limit. This deviates from the papers,
    whose changes are fractions of a level.
    """
    length = change.square().flatten(1).sum(1).sqrt()
    scale = math.sqrt(limit) / length.clamp_min(1e-30)
    while True:
        levels = (change * scale[:, None, None, None]).round()
        squares = levels.square().flatten(1).sum(1)
        over = squares > limit
        if not over.any():
            return levels
        scale = (scale * (limit / squares).sqrt()).where(over, scale)
