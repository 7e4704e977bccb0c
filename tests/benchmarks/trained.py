"""Inputs of the measurements: images, and checkpoints of a network really trained on them, for both loops.

Legend: B images, K classes, D feature width, N checkpoints.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pipeline.sources.textures import CLASSES, SIDE, textures
from sep.choices import Kernels, Precision
from sep.craft import Method, craft
from sep.craft_config import CraftConfig
from sep.ensemble import Member, class_sums, compile_together, freeze
from sep.fitting import optimiser, train_epoch
from sep.models import Network, build
from sep.objective import shifted
from sep.train_config import TrainConfig
from sep.views.registry import PLAIN
from tests.benchmarks import plain

EPS_LEVELS = 8
TRAINING_BATCH = 64
LR = 0.01  # at 0.1, logits of a ResNet18 exceed 1000 after so few steps; gradients underflow float32, which is slow


def device() -> torch.device:
    """Return the GPU if the machine has one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Trained:
    """A training set, `(B, 3, H, W)` uint8 and its labels, and every epoch's checkpoint of a network trained on it; all on the CPU."""

    name: str
    images: Tensor
    labels: Tensor
    networks: list[Network]

    @property
    def targets(self) -> Tensor:
        """The paper's target of every image."""
        return shifted(self.labels, len(CLASSES))

    @cached_property
    def means(self) -> list[Tensor]:
        """The class means of every checkpoint, `(K, D)`, on the CPU."""
        batches = list(zip(torch.split(self.images, 250), torch.split(self.labels, 250), strict=True))
        pairs = [class_sums(freeze(network).to(device()), batches, len(CLASSES)) for network in self.networks]
        return [(sums / counts[:, None]).float() for sums, counts in pairs]

    def members(self, method: Method, kernels: Kernels = "fused", count: int | None = None) -> list[Member]:
        """Return the ensemble for the library, of the first `count` checkpoints or of all."""
        networks = [freeze(network, kernels).to(device()) for network in self.networks[:count]]
        if kernels == "compiled":
            compile_together(networks)
        if method == "sep":
            return [Member(network) for network in networks]
        return [Member(network, means.to(device())) for network, means in zip(networks, self.means, strict=False)]

    def plain_networks(self) -> list[Network]:
        """Return the ensemble for the plain loop."""
        return [copy.deepcopy(network).to(device()).to(memory_format=torch.contiguous_format).eval() for network in self.networks]

    def plain_craft(
        self, networks: list[Network], method: Method, images: int, steps: int, batch_size: int, of: plain.Gradient = plain.gradient
    ) -> Tensor:
        """Return that many protected images, by the plain loop."""
        means = None if method == "sep" else [means.to(device()) for means in self.means]
        draws = None
        if method == "sep-fa-vr":  # the draws of the library
            draws = torch.randint(len(networks), (steps, len(networks)), generator=torch.Generator().manual_seed(0)).tolist()
        return plain.craft(networks, self.images[:images], self.targets[:images], means, EPS_LEVELS, steps, batch_size, draws, of)

    def craft(
        self,
        members: list[Member],
        method: Method,
        images: int,
        steps: int,
        precision: Precision = "auto",
        kernels: Kernels = "fused",
        batch_size: int | None = None,
        views: Sequence[str] = PLAIN,
    ) -> Tensor:
        """Return that many protected images, by the library; members use the same kernels, and look through these views."""
        config = CraftConfig(
            method=method, eps_levels=EPS_LEVELS, steps=steps, checkpoints=len(members), precision=precision, kernels=kernels
        )
        return craft(members, self.images[:images], self.targets[:images], config, torch.Generator().manual_seed(0), batch_size, views)


def train(name: str, images: int, epochs: int) -> Trained:
    """Train a network for that many epochs on that many of the generated images."""
    torch.manual_seed(0)
    levels = torch.from_numpy(textures(0, "train", range(images))).permute(0, 3, 1, 2).contiguous()
    labels = torch.arange(images) % len(CLASSES)
    pixels = levels.double().transpose(0, 1).flatten(1)
    network = build(name, len(CLASSES), SIDE, pixels.mean(1).tolist(), pixels.std(1).tolist())
    network = network.to(device()).to(memory_format=torch.channels_last)
    config = TrainConfig(epochs=epochs, batch_size=TRAINING_BATCH, lr=LR, schedule="one-cycle", augmentation="none")
    sgd, scheduler = optimiser(network, config, -(-images // TRAINING_BATCH))
    draws, checkpoints = torch.Generator().manual_seed(0), []
    for _ in range(epochs):
        order = torch.split(torch.randperm(images, generator=draws), TRAINING_BATCH)
        train_epoch(network, sgd, scheduler, [(levels[rows], labels[rows]) for rows in order], "none", draws)
        checkpoints.append(copy.deepcopy(network).cpu())
    return Trained(name, levels, labels, checkpoints)
