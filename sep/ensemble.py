"""The self-ensemble: the epochs whose checkpoints it has, and each checkpoint frozen together with its own class means.

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
from torch.nn.functional import one_hot, pad

from sep.choices import Kernels, Precision
from sep.execution import arithmetic, moved, to_device
from sep.models import Network
from sep.views.registry import VIEWS, View
from sep.winograd import replace_convolutions

EXACT = 2.0**24  # features are summed in multiples of its inverse


def equally_spaced(epochs: int, count: int) -> list[int]:
    """Return 0-based epochs `floor((k+1)*E/N) - 1`, k = 0..N-1 (method, section 2): 120, 30 -> 3, 7, ..., 119.

    Raises:
        ValueError: more checkpoints are asked for than epochs were trained.
    """
    if not 1 <= count <= epochs:
        raise ValueError(f"an ensemble of {count} checkpoints needs 1 to {epochs} of them, one per epoch trained")
    return [(k + 1) * epochs // count - 1 for k in range(count)]


def freeze(network: Network, kernels: Kernels = "fused") -> Network:
    """Return a copy of a network in eval mode and without weight gradients.

    Args:
        network: as trained.
        kernels: plain: the operations of the training; otherwise each batch-norm is folded into the convolution before it (a batch-norm
            without one, as DenseNet has, stays in eval mode), and weights are laid out channels last; fused also has faster
            convolutions on a CPU, see `sep.winograd`; auto is fused.

    Raises:
        ValueError: weights or running statistics are not finite, so that no gradient can be followed.
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
    if kernels in ("fused", "auto"):
        replace_convolutions(frozen.trunk)
    return frozen


class _Compiled(nn.Module):
    """A trunk with its own weights, run by code that was compiled once for all checkpoints of its architecture."""

    def __init__(self, trunk: nn.Module, run: Callable[[dict[str, Tensor], Tensor], Tensor]) -> None:
        super().__init__()
        self.trunk, self.run = trunk, run
        self.weights = {**dict(trunk.named_parameters()), **dict(trunk.named_buffers())}

    def forward(self, x: Tensor) -> Tensor:
        if lacking := _compiled_for(len(x)) - len(x):
            return self.run(self.weights, pad(x, (0, 0, 0, 0, 0, 0, 0, lacking)))[: len(x)]
        return self.run(self.weights, x)


def _compiled_for(count: int) -> int:
    """Return the number of images that are computed instead of `count`, at most a quarter more: shards of similar size share a graph.

    It is `count` itself where that has three significant bits, or 25 times such a number, as sizes that people choose mostly do. It depends
    on nothing else, so that the order of shards decides no bytes.
    """

    def rounded_up(number: int) -> int:
        step = 1 << max(number.bit_length() - 3, 0)
        return -(-number // step) * step

    return min(rounded_up(count), 25 * rounded_up(-(-count // 25)))


def compile_together(networks: Sequence[Network]) -> None:
    """Run networks from `freeze`, all of one architecture, by torch.compile's kernels, compiled once for all of them.

    Call it when the networks are on their device.
    """
    template = copy.deepcopy(networks[0].trunk).to("meta")  # structure alone: with weights, it would be compiled for one network

    def run(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        features: Tensor = functional_call(template, weights, (x,))
        return features

    run.__code__ = run.__code__.replace()  # torch counts compilations per code object, and gives up at a limit
    compiled = torch.compile(run, dynamic=False)  # or at the second number of images, anew for any number
    for network in networks:
        network.trunk = _Compiled(network.trunk, compiled).eval()


@dataclass(frozen=True)
class Member:
    """One checkpoint of the ensemble, through one view: a frozen network together with *its own* class means.

    Attributes:
        network: from `freeze`.
        means: `(K, D)` mean features per class over all training images, seen through the member's view; None if the method needs none.
        view: what it sees images through.
    """

    network: Network
    means: Tensor | None = None
    view: View = VIEWS["none"]

    def __post_init__(self) -> None:
        """Catch a network that could still change (method, section 6, faults 1 and 2)."""
        assert not any(module.training for module in self.network.modules())
        assert not any(p.requires_grad for p in self.network.parameters())


def means_precision(device: torch.device) -> Precision:
    """Return the arithmetic of class means: on a GPU tf32, a quarter of float32's time, and the means hardly differ."""
    return "tf32" if device.type == "cuda" else "float32"


@torch.inference_mode()
def class_sums(network: Network, batches: Iterable[tuple[Tensor, Tensor]], num_classes: int) -> tuple[Tensor, Tensor]:
    """Return sums of features per class, to be added over shards and divided by the counts.

    Features are rounded to multiples of 2^-24, the step of float32 between 1/2 and 1. Their sums are exact in float64, and therefore the
    same to the bit in any order of addition.

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
    with arithmetic(device, means_precision(device)):
        for images, labels in batches:
            members = one_hot(moved(labels, device), num_classes)
            levels = to_device(images, network.mean, "fused")
            features = (network.features(levels).double() * EXACT).round() / EXACT
            sums += members.double().T @ features  # a product: index_add_ on a GPU has no fixed order
            counts += members.sum(0)
    return sums.cpu(), counts.cpu()
