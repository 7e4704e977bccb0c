"""How far an image may be changed: staying within a budget, and proving it in integers on what is released.

Legend: B images, C channels, H W pixels; images are grey levels 0..255.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Norm = Literal["linf", "l2", "pixels"]
UNITS: dict[Norm, str] = {"linf": "levels", "l2": "squared levels", "pixels": "pixels"}


@dataclass(frozen=True)
class Budget:
    """What a method may spend on one image, as a whole number that is counted in integers.

    Attributes:
        norm: linf: the largest change of a value; l2: the sum of the squares of all changes; pixels: how many of them are changed.
        limit: the most of it, in levels, squared levels or pixels.
    """

    norm: Norm
    limit: int

    def __str__(self) -> str:
        """As people write it: `8/255`, `L2 1.30` of values from 0 to 1, `1 pixel`."""
        if self.norm == "linf":
            return f"{self.limit}/255"
        if self.norm == "l2":
            return f"L2 {math.sqrt(self.limit) / 255:.2f}"
        return f"{self.limit} pixel{'s' if self.limit != 1 else ''}"


def largest_change(eps_levels: int, _: Sequence[int]) -> Budget:
    """The L-infinity ball, whatever the size of the images."""
    return Budget("linf", eps_levels)


def project(x: Tensor, clean: Tensor, eps_levels: int) -> Tensor:
    """`P(x) = clamp(clamp(x, x0 - eps, x0 + eps), 0, 255)` (method, section 4).

    Args:
        x: whole levels as floats, `(B, C, H, W)`.
        clean: the images `x0` the ball is around, same shape.
        eps_levels: radius of the ball, in levels.
    """
    return torch.clamp(x, clean - eps_levels, clean + eps_levels).clamp_(0, 255)


def linf_levels(protected: Tensor, clean: Tensor) -> Tensor:
    """Largest change of each image in whole levels, `(B,)` int, of uint8 images of equal shape `(B, ...)`."""
    assert protected.dtype == clean.dtype == torch.uint8
    return (protected.int() - clean.int()).abs().flatten(1).amax(1)


def psnr_db(protected: Tensor, clean: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, `(B,)`, of uint8 images; infinite where nothing changed."""
    error = (protected.double() - clean.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(255.0**2 / error)


def budget_used(protected: Tensor, clean: Tensor, norm: Norm) -> Tensor:
    """What each image's change comes to, `(B,)` int, of uint8 images `(B, C, H, W)`."""
    if norm == "linf":
        return linf_levels(protected, clean)
    if norm == "l2":
        return (protected.long() - clean.long()).square().flatten(1).sum(1)
    return (protected != clean).any(1).flatten(1).sum(1)


def check_budget(protected: Tensor, clean: Tensor, budget: Budget) -> None:
    """Hold uint8 images `(B, C, H, W)` to a budget.

    Raises:
        ValueError: an image breaks it, or the shapes differ.
    """
    if protected.shape != clean.shape:
        raise ValueError(f"protected images have shape {tuple(protected.shape)}, clean ones {tuple(clean.shape)}")
    each = budget_used(protected, clean, budget.norm)
    if (each > budget.limit).any():
        worst = int(each.argmax())
        raise ValueError(f"image {worst} of {len(each)} changes by {int(each[worst])} {UNITS[budget.norm]}; the budget is {budget.limit}")


def check(protected: Tensor, clean: Tensor, eps_levels: int) -> None:
    """Hold uint8 images to the L-infinity ball: see `check_budget`."""
    check_budget(protected, clean, Budget("linf", eps_levels))


def whole_levels(change: Tensor, limit: int) -> Tensor:
    """Changes `(B, C, H, W)` as whole levels whose squares add up to at most `limit` for each image, and to hardly less.

    Rounding can make a change longer, so the length is taken back until what is rounded is within the limit. Deviates from the papers,
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
        scale = torch.where(over, scale * (limit / squares).sqrt(), scale)
