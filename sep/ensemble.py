"""The self-ensemble: which epochs' checkpoints, and each of them frozen together with its own class means.

Legend: B images, C channels, H W pixels, K classes, D feature width, N checkpoints, E epochs.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.optimization import fuse
from torch.nn.functional import one_hot

from sep.execution import Kernels, arithmetic
from sep.models import Network
from sep.winograd import replace_convolutions

EXACT = 2.0**24  # features are summed in multiples of its inverse


def equally_spaced(epochs: int, count: int) -> list[int]:
    """0-based epochs `floor((k+1)*E/N) - 1`, k = 0..N-1 (method, section 2): 120, 30 -> 3, 7, ..., 119.

    Raises:
        ValueError: more checkpoints are asked for than there are epochs.
    """
    if not 1 <= count <= epochs:
        raise ValueError(f"an ensemble of {count} checkpoints needs 1 to {epochs} of them, one per epoch trained")
    return [(k + 1) * epochs // count - 1 for k in range(count)]


def freeze(network: Network, kernels: Kernels = "fused") -> Network:
    """The network in eval mode and without weight gradients; the one passed in is not changed.

    Args:
        network: as trained.
        kernels: plain: the operations it was trained with; otherwise batch-norm is folded into the convolution before it, where there is
            one (what DenseNet has left stays in eval mode), and weights are laid out channels last; fused has on a CPU also
            convolutions of its own, see `sep.winograd`.

    Raises:
        ValueError: weights or running statistics are not finite; such a network has no gradients to follow.
    """
    if not all(bool(tensor.isfinite().all()) for tensor in network.state_dict().values()):
        raise ValueError("weights are not finite: that training diverged; train again with a lower learning rate")
    if kernels == "plain":
        return copy.deepcopy(network).to(memory_format=torch.contiguous_format).requires_grad_(False).eval()
    frozen = copy.deepcopy(network).eval()
    with warnings.catch_warnings():  # torch announces a successor of fx's fusion that does not exist yet
        warnings.simplefilter("ignore")
        frozen.trunk = fuse(frozen.trunk, inplace=True)
    frozen = frozen.to(memory_format=torch.channels_last).requires_grad_(False).eval()
    if kernels == "fused":
        replace_convolutions(frozen.trunk)
    return frozen


class _Compiled(nn.Module):
    """A trunk, where it is to stay, run by code that was compiled once for all checkpoints of its architecture, given its own weights."""

    def __init__(self, trunk: nn.Module, run: Callable[[dict[str, Tensor], Tensor], Tensor]) -> None:
        super().__init__()
        self.trunk, self.run = trunk, run
        self.weights = {**dict(trunk.named_parameters()), **dict(trunk.named_buffers())}

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.weights, x)


def compile_together(networks: Sequence[Network]) -> None:
    """Run networks from `freeze`, all of one architecture, by torch.compile's kernels, which are made once and not once per network.

    To be called when they are on their device.
    """
    template = copy.deepcopy(networks[0].trunk).to("meta")  # only its structure: with weights, it would be compiled for these alone

    def run(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        features: Tensor = functional_call(template, weights, (x,))
        return features

    run.__code__ = run.__code__.replace()  # torch counts compilations per code object, and gives up at a limit
    compiled = torch.compile(run)
    for network in networks:
        network.trunk = _Compiled(network.trunk, compiled).eval()


@dataclass(frozen=True)
class Member:
    """One checkpoint of the ensemble: a frozen network and *its own* class means, never apart.

    Attributes:
        network: from `freeze`.
        means: `(K, D)` mean features per class over all training images; None where the method needs none.
    """

    network: Network
    means: Tensor | None = None

    def __post_init__(self) -> None:
        """Catch a network that could still change (Faults 1 and 2 of the authors' code)."""
        assert not any(module.training for module in self.network.modules())
        assert not any(p.requires_grad for p in self.network.parameters())


@torch.inference_mode()
def class_sums(network: Network, batches: Iterable[tuple[Tensor, Tensor]], num_classes: int) -> tuple[Tensor, Tensor]:
    """Sums of features per class, to be added over shards and divided by the counts.

    Features are rounded to multiples of 2^-24, the step of float32 between 1/2 and 1: sums of them are exact in float64, and so the same
    to the bit in whatever order they are added.

    Args:
        network: from `freeze`.
        batches: un-augmented images `(B, C, H, W)` in levels and labels `(B,)`.
        num_classes: K.

    Returns:
        `(K, D)` float64 sums and `(K,)` int64 counts, on the CPU.
    """
    assert not network.training
    device = network.mean.device
    sums = torch.zeros(num_classes, network.head.in_features, dtype=torch.float64, device=device)
    counts = torch.zeros(num_classes, dtype=torch.int64, device=device)
    with arithmetic(device, "float32"):  # once per run, so exactness costs nothing
        for images, labels in batches:
            members = one_hot(labels.to(device), num_classes)
            levels = images.to(device, network.mean.dtype, memory_format=torch.channels_last)
            features = (network.features(levels).double() * EXACT).round() / EXACT
            sums += members.double().T @ features  # a product: index_add_ on a GPU has no fixed order
            counts += members.sum(0)
    return sums.cpu(), counts.cpu()
