"""Parametric smoothing: the accuracy of networks around a trained one (Wang et al., NDSS 2025, "Provably Unlearnable Data Examples").

The paper certifies (q, eta)-learnability by it: normal noise is added to the parameters of a network that was trained on a release, and
the quantiles of the accuracy bound those around any other network within a distance eta.

Legend: K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Generator, nn

from sep.augment import beside
from sep.fitting import Batches, accuracy, confusion


def smoothed_accuracies(
    network: nn.Module,
    sigma: float,
    draws: Iterable[Generator],
    tests: Callable[[], Batches],
    num_classes: int,
    classes: Sequence[int] | None = None,
) -> Iterator[float]:
    """Yield the accuracy, in percent, of a network with fresh noise on its parameters, once for each draw.

    The running statistics of batch normalisation are no parameters, and stay as they were trained, as in the paper's code.

    Args:
        network: gives (features, logits); afterwards as it was before.
        sigma: standard deviation of the noise on each parameter.
        draws: a generator on the CPU for each draw.
        tests: opens the test batches, on the network's device.
        num_classes: K.
        classes: true classes of the images that count; all if not given.
    """
    for generator in draws:
        with _perturbed(network, sigma, generator):
            found = accuracy(confusion(network, tests(), num_classes, "float32"), classes)
        yield found


@contextmanager
def _perturbed(network: nn.Module, sigma: float, generator: Generator) -> Iterator[None]:
    """Add noise to the parameters, and put them back."""
    before = [parameter.detach().clone() for parameter in network.parameters()]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(beside(parameter, torch.randn(parameter.shape, generator=generator)), alpha=sigma)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(network.parameters(), before, strict=True):
                parameter.copy_(value)


def distance(one: nn.Module, other: nn.Module) -> float:
    """Return the L2 distance between the parameters of two networks of one architecture."""
    with torch.no_grad():
        squares = [(a - b).double().square().sum() for a, b in zip(one.parameters(), other.parameters(), strict=True)]
        return float(torch.stack(squares).sum().sqrt())
