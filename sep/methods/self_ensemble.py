"""Self-Ensemble Protection (Chen et al. 2023), and targeted adversarial poisoning as its case of one checkpoint (Fowl et al. 2021).

Fowl et al., "Adversarial Examples Make Strong Poisons". Momentum on normalised gradients is that of Dong et al. 2018, "Boosting
Adversarial Attacks with Momentum".

Legend: B images, C channels, H W pixels, N members, T steps, m members a step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sep import craft
from sep.methods.request import Request
from sep.pictures import Images, apart
from sep.views.mix import Turn, shuffled, turns
from sep.views.registry import Look


def mean_gradient(request: Request) -> Images:
    """Descend for T steps on the mean gradient of the ensemble, or of m members drawn for each step.

    This is SEP, SEP-FA with class means, TAP with one member, and each of them with draws, momentum or normalised gradients. With views,
    each member looks through one of them in each step.

    Args:
        request: with an ensemble and targets.

    Returns:
        Protected images, `(B, C, H, W)` uint8.

    Raises:
        ValueError: gradients of the ensemble are no numbers.
    """
    config, ascend = request.config, request.config.targets == "untargeted"

    def direction(drawn: Sequence[Turn], x: Tensor, _: Tensor, targets: Tensor) -> Tensor:
        if not config.normalised:
            return craft.summed_gradient(request.members, x, targets, drawn, ascend=ascend)
        total = torch.zeros_like(x)
        for k, look in drawn:
            total += normalise(craft.gradient(request.members[k], x, targets, look, ascend=ascend), look)
        # Momentum weighs steps alike, however far the members of each agree. One member's gradient is normalised already.
        return normalise(total, look) if config.momentum and len(drawn) > 1 else total

    drawn = deal(config.steps, config.members_per_step, request.checkpoints, request.generator)
    return craft.descend(request, turns(drawn, request.views, request.budget.limit, request.view_draws), direction)


def deal(steps: int, per_step: int | None, members: int, generator: torch.Generator) -> list[list[int]]:
    """Return the positions of each step's members, `(T, m)`, ascending; of all members if no number is given.

    Members are dealt from a shuffled deck, each once until all have had their turn. Then the deck is shuffled again, also within a step.
    """
    if per_step is None:
        return [list(range(members))] * steps
    dealt: list[list[int]] = shuffled(members, steps * per_step, generator).view(steps, per_step).sort(1).values.tolist()
    return dealt


def normalise(gradient: Tensor, look: Look | None = None) -> Tensor:
    """Divide each image's gradient `(B, C, H, W)` by its mean magnitude; a gradient of zeros stays as it is.

    The look has the sizes of pictures that lie one after the other.
    """
    if look is not None and look.own_size is not None:
        return torch.cat([normalise(each).flatten() for each in apart(gradient, look.own_size.sizes)])
    # In float64, so that the number of images at a time, which may decide the order of additions, decides no bit.
    magnitude = gradient.abs().mean((1, 2, 3), keepdim=True, dtype=torch.float64).to(gradient.dtype)
    return gradient / magnitude.clamp_min(torch.finfo(gradient.dtype).tiny)
