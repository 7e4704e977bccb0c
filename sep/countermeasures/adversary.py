"""Countermeasures that make training batches as hard as possible for the network in training.

Legend: B images, C channels, H W pixels, K classes. Every function maps the network at rest, float levels `(B, C, H, W)` and the
probabilities of the classes `(B, K)` to levels of the same shape; `generator` is on the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sep.at_rest import AtRest
from sep.augment import beside
from sep.countermeasures.distortion import strong

STEPS = 7
COPIES = 5


def adversarial(network: AtRest, levels: Tensor, targets: Tensor, generator: torch.Generator, *, eps_levels: int) -> Tensor:
    """Train adversarially by projected gradients (Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks").

    Images move towards a larger loss, within `eps_levels` grey levels of 255. From a random start they take 7 steps of a quarter of
    `eps_levels` each, as in the paper on CIFAR-10. A step costs a little more than half a training step: it needs no gradient of weights.
    """
    low, high = (levels - eps_levels).clamp(min=0), (levels + eps_levels).clamp(max=255)
    # A projection may have moved levels out of range: do not move them further out.
    low, high = torch.minimum(low, levels), torch.maximum(high, levels)
    start = 2 * beside(levels, torch.rand(levels.shape, generator=generator)) - 1
    moved = torch.clamp(levels + eps_levels * start, low, high)
    with network:
        for _ in range(STEPS):
            moved = torch.clamp(moved + eps_levels / 4 * network.slopes(moved, targets).sign(), low, high)
    return moved


def ueraser(network: AtRest, levels: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
    """Replace each image by the one of five strongly distorted copies with the largest loss (Qin et al. 2023, "Learning the Unlearnable").

    This happens in every epoch, which the paper calls UEraser-Max, its strongest variant. Two things differ from the authors' code. Here
    the network compares copies in eval mode, and then trains on the chosen copy in a second pass. There all copies pass through the
    network in training mode, which then follows the loss of the chosen copy. Against TAP and autoregressive noise their code also
    compresses images by JPEG, with a quality drawn for every batch; `jpeg-10+ueraser` comes near to that.
    """
    hardest, most = levels, levels.new_full((len(levels),), -torch.inf)
    copies = strong(torch.cat([levels] * COPIES), generator)  # together, which a GPU is started for only once
    with network:
        for copy in copies.chunk(COPIES):
            loss = network.losses(copy, targets)
            hardest = torch.where((loss > most)[:, None, None, None], copy, hardest)
            most = torch.maximum(most, loss)
    return hardest
