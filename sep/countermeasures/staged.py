"""Keeping the early layers of a network from what a protection teaches them.

After Dang et al. 2023, "Unlearnable Examples Give a False Sense of Data Privacy".
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from sep.models import Network

RATES = (0.0, 0.01)  # of the first and the second third of the layers, as shares of the rate of the last


def staged(network: Network) -> None:
    """Let the second third of the layers learn slowly, and the first not at all.

    Shallow layers are the first to learn a protection's changes, and then hand nothing else on, as the paper observes. It slows them down
    in stages, when it sees that their activations cluster. Here they are slow from the start: in trainings of some hundred steps they
    have learned the changes before the first epoch after which one could look. Weight decay remains as it is.

    Args:
        network: changed in place; gradients of its weights are scaled from now on.
    """
    weights = list(network.trunk.parameters())
    for third, rate in enumerate(RATES):
        for weight in weights[third * len(weights) // 3 : (third + 1) * len(weights) // 3]:
            weight.register_hook(partial(_scaled, by=rate))  # type: ignore[no-untyped-call]


def _scaled(gradient: Tensor, by: float) -> Tensor:
    return gradient * by
