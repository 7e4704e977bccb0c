"""Random noise of the largest size: the control, which protects nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from sep.methods.request import Request, added


def random_signs(request: Request) -> Tensor:
    """Move every value by the whole L-infinity budget, up or down at random: `(B, C, H, W)` uint8."""
    signs = torch.randint(2, request.images.shape, generator=request.generator, dtype=torch.int8) * 2 - 1
    return added(request.images.cpu(), request.budget.limit * signs.double())
