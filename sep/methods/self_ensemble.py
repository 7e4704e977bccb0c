"""Self-Ensemble Protection (Chen et al. 2023), and targeted adversarial poisoning as its case of one checkpoint (Fowl et al. 2021).

Fowl et al., "Adversarial Examples Make Strong Poisons".

Legend: B images, C channels, H W pixels, T steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sep import craft
from sep.budget import project
from sep.methods.request import Request


def mean_gradient(request: Request) -> Tensor:
    """Descend for T steps on the mean gradient of the ensemble: SEP, SEP-FA with class means, TAP with one member.

    Args:
        request: with an ensemble and targets.

    Returns:
        Protected images, `(B, C, H, W)` uint8.

    Raises:
        ValueError: gradients of the ensemble are no numbers.
    """
    steps, ascend = request.config.steps, request.config.targets == "untargeted"

    def path(clean: Tensor, targets: Tensor) -> Tensor:
        x = clean
        for _ in range(steps):
            total = torch.zeros_like(x)
            for member in request.members:
                total += craft.gradient(member, x, targets, ascend=ascend)
            x = project(x - craft.signs(total), clean, request.budget.limit)
        return x

    return craft.descend(request, path)
