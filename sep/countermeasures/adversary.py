"""Countermeasures that make training batches as hard as possible for the network in training.

Legend: B images, C channels, H W pixels, K classes. Every function maps the network, float levels `(B, C, H, W)` and the
probabilities of the classes `(B, K)` to levels of the same shape; `generator` is on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from sep.augment import beside
from sep.countermeasures.distortion import strong
from sep.ensemble import freeze
from sep.models import Network

STEPS = 7
COPIES = 5


@contextmanager
def at_rest(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the network in eval mode: the search for hard images then neither moves batch-norm statistics nor depends on the batch.

    On a CPU this is a copy with batch-norm folded into its convolutions. Folding costs a quarter of a gradient and makes gradients 1.3
    times as fast; on a GPU it would cost more than it saves.
    """
    if isinstance(network, Network) and not network.mean.is_cuda:
        yield freeze(network)
        return
    training = network.training
    network.eval()
    try:
        yield network
    finally:
        network.train(training)


def losses(network: nn.Module, levels: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each image, `(B,)`."""
    return functional.cross_entropy(network(levels)[1], targets, reduction="none")


def adversarial(network: nn.Module, levels: Tensor, targets: Tensor, generator: torch.Generator, *, eps_levels: int) -> Tensor:
    """Train adversarially by projected gradients (Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks").

    Images move towards a larger loss, within `eps_levels` grey levels of 255. From a random start they take 7 steps of a quarter of
    `eps_levels` each, as in the paper on CIFAR-10. A step costs a little more than half a training step: it needs no gradient of weights.
    """
    low, high = (levels - eps_levels).clamp(min=0), (levels + eps_levels).clamp(max=255)
    # A projection may have moved levels out of range: do not move them further out.
    low, high = torch.minimum(low, levels), torch.maximum(high, levels)
    start = 2 * beside(levels, torch.rand(levels.shape, generator=generator)) - 1
    moved = torch.clamp(levels + eps_levels * start, low, high)
    with at_rest(network) as resting:
        for _ in range(STEPS):
            moved.requires_grad_()
            (slope,) = torch.autograd.grad(losses(resting, moved, targets).sum(), moved)
            moved = torch.clamp(moved.detach() + eps_levels / 4 * slope.sign(), low, high)
    return moved


def ueraser(network: nn.Module, levels: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
    """Replace each image by the one of five strongly distorted copies with the largest loss (Qin et al. 2023, "Learning the Unlearnable").

    This happens in every epoch, which the paper calls UEraser-Max, its strongest variant. Two things differ from the authors' code. Here
    the network compares copies in eval mode, and then trains on the chosen copy in a second pass. There all copies pass through the
    network in training mode, which then follows the loss of the chosen copy. Against TAP and autoregressive noise their code also
    compresses images by JPEG, with a quality drawn for every batch; `jpeg-10+ueraser` comes near to that.
    """
    hardest, most = levels, levels.new_full((len(levels),), -torch.inf)
    with at_rest(network) as resting, torch.no_grad():
        for _ in range(COPIES):
            copy = strong(levels, generator)
            loss = losses(resting, copy, targets)
            hardest = torch.where((loss > most)[:, None, None, None], copy, hardest)
            most = torch.maximum(most, loss)
    return hardest
