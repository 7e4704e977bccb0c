"""Training batches made as hard as possible for the network that is being trained.

Legend: B images, C channels, H W pixels, K classes. Everything maps float levels `(B, C, H, W)`, the network and the probabilities of the
classes `(B, K)` to levels of the same shape; `generator` is on the CPU.
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
    """The network as it would be tested: looking for hard images then neither moves batch-norm statistics nor depends on the batch.

    On a CPU this is a copy with batch-norm folded into its convolutions, which takes a quarter of a gradient's time and gives 1.3 times
    as many; on a GPU folding would take longer than it saves.
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
    """Cross-entropy of each image, `(B,)`."""
    return functional.cross_entropy(network(levels)[1], targets, reduction="none")


def adversarial(network: nn.Module, levels: Tensor, targets: Tensor, generator: torch.Generator, *, eps_levels: int) -> Tensor:
    """Adversarial training by projected gradients (Madry et al. 2018, "Towards Deep Learning Models Resistant to Adversarial Attacks").

    Images are moved to where the loss is larger, within `eps_levels` grey levels of 255: from a random start in 7 steps of a quarter of
    that each, which is how the paper trains on CIFAR-10. A step costs half of a training step and more, for it is a gradient without
    that of the weights: 7 steps are what a CPU can still do.
    """
    low, high = (levels - eps_levels).clamp(min=0), (levels + eps_levels).clamp(max=255)
    # A projection may have taken levels out of range: they stay as near as they were.
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
    """Of five strongly distorted copies of each image the one with the largest loss (Qin et al. 2023, "Learning the Unlearnable").

    In every epoch, which the paper calls UEraser-Max: its strongest. Two things differ from the authors' code. Copies are compared by
    the network at rest, and the chosen one goes through it once more to train it; theirs go through the network in training, and the loss
    of the chosen is what is followed. And against TAP and autoregressive noise theirs compresses images by JPEG besides, of a quality
    drawn for every batch; `jpeg-10+ueraser` comes near to that.
    """
    hardest, most = levels, levels.new_full((len(levels),), -torch.inf)
    with at_rest(network) as resting, torch.no_grad():
        for _ in range(COPIES):
            copy = strong(levels, generator)
            loss = losses(resting, copy, targets)
            hardest = torch.where((loss > most)[:, None, None, None], copy, hardest)
            most = torch.maximum(most, loss)
    return hardest
