"""Self-Ensemble Protection with variance-reduced gradients (Chen et al. 2023, SEP-FA-VR), by SVRE.

Xiong et al. 2022, "Stochastic Variance Reduced Ensemble Adversarial Attack for Boosting the Adversarial Transferability".

Legend: B images, C channels, H W pixels, M inner steps, T outer steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sep import craft
from sep.budget import project
from sep.methods.request import Request
from sep.pictures import Images
from sep.views.mix import Turn, turns


def variance_reduced(request: Request) -> Images:
    """Descend for T outer steps on the sum of M inner steps, each along one drawn member, corrected by the mean of the ensemble.

    A member's class means always go with its own network. All draws, `(T, M)`, are made before the first micro-batch, so that its size
    decides no draw; it may decide a rounding.

    Args:
        request: with an ensemble, class means and targets.

    Returns:
        Protected images, `(B, C, H, W)` uint8.

    Raises:
        ValueError: gradients of the ensemble are no numbers.
    """
    config, members, limit, count = request.config, request.members, request.budget.limit, request.checkpoints
    ascend = config.targets == "untargeted"
    shape = (config.steps, config.inner_steps or count)
    inner = torch.randint(count, shape, generator=request.generator).tolist()
    outer = turns([range(count)] * config.steps, request.views, limit, request.view_draws)

    def direction(drawn: Sequence[Turn], x: Tensor, clean: Tensor, targets: Tensor) -> Tensor:
        each = {k: craft.gradient(members[k], x, targets, look, ascend=ascend) for k, look in drawn[:count]}
        mean = torch.stack(list(each.values())).mean(0)
        v, total = x, torch.zeros_like(x)
        for number, (k, look) in enumerate(drawn[count:]):
            own = craft.gradient(members[k], v, targets, look, ascend=ascend) if number else each[k]  # the first is at x itself
            total += own - (each[k] - mean)
            v = project(v - total.sign(), clean, limit)
        return total  # has every NaN of the inner steps

    # The inner steps of a step look as its outer gradients did: the correction is of the same function.
    return craft.descend(request, [[*each, *(each[k] for k in drawn)] for each, drawn in zip(outer, inner, strict=True)], direction)
