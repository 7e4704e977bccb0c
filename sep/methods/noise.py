"""Random noise of the largest size: the control, which protects nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from sep.methods.request import Request, added
from sep.pictures import Images, mapped


def random_signs(request: Request) -> Images:
    """Move every value by the whole L-infinity budget, up or down at random: `(B, C, H, W)` uint8, or pictures of their own size."""

    def moved(images: Tensor) -> Tensor:
        signs = torch.randint(2, images.shape, generator=request.generator, dtype=torch.int8) * 2 - 1
        return added(images, request.budget.limit * signs.double())

    images = request.images
    return moved(images.cpu()) if isinstance(images, Tensor) else mapped(moved, images)
