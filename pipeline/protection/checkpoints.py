"""The surrogate's checkpoints as an ensemble: read and checked, frozen, and with class means over the whole training set."""

from __future__ import annotations

import gc
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from cluster.work import own_gpu
from pipeline.storage.layout import CHECKPOINTS
from pipeline.storage.records import digest, sha256
from pipeline.storage.run import Run
from pipeline.storage.stage import Manifest
from pipeline.training.initial import checkpoint_network
from sep.choices import Kernels
from sep.ensemble import Member, compile_together, equally_spaced, freeze
from sep.execution import share_memory
from sep.models import Network
from sep.views.registry import PLAIN, kinds

Item = TypeVar("Item", covariant=True)
HELD_BYTES = 2**29  # of networks in a worker's memory, where each step draws a few of more


@dataclass(frozen=True)
class Checkpoint:
    """One epoch's weights, as the surrogate's index records them."""

    network: str
    epoch: int
    file: str
    sha256: str


def weights_digest(index: Sequence[Mapping[str, Any]]) -> str:
    """Return the digest of the surrogate's outcome: the epochs of all networks, their files and the files' hashes."""
    return digest([[entry[name] for name in ("network", "epoch", "file", "sha256")] for entry in index])


def read_index(run: Run, trained: Manifest | None = None) -> dict[str, list[Checkpoint]]:
    """Return the checkpoints of each network, in the order of the epochs.

    Args:
        run: with a surrogate.
        trained: the surrogate's manifest, if it was read before.

    Raises:
        ValueError: the index was altered since the surrogate stage wrote it.
    """
    where, recorded = run.child("surrogate"), (trained or Manifest.load(run, "surrogate")).counts["weights_sha256"]
    try:
        entries = json.loads(where.read(CHECKPOINTS))["checkpoints"]
        altered = weights_digest(entries) != recorded
    except (ValueError, KeyError, TypeError):
        altered = True
    if altered:
        raise ValueError(f"{where.uri}/{CHECKPOINTS} was altered since it was written: delete {where.uri} and run that stage again")
    index: dict[str, list[Checkpoint]] = {}
    for entry in entries:
        index.setdefault(entry["network"], []).append(Checkpoint(entry["network"], entry["epoch"], entry["file"], entry["sha256"]))
    return index


def choose(index: Mapping[str, Sequence[Checkpoint]], count: int, epochs: Sequence[int] = ()) -> tuple[Checkpoint, ...]:
    """Return the ensemble: of each network the checkpoints of `epochs`, or else `count` equally spaced ones that end with the last."""
    return tuple(
        checkpoints[epoch]
        for checkpoints in index.values()
        for epoch in (epochs or (equally_spaced(len(checkpoints), count) if count else ()))
    )


class OnDemand(Sequence[Item]):
    """A sequence whose items are made when they are asked for."""

    def __init__(self, count: int, make: Callable[[int], Item]) -> None:
        """Prepare `count` items; `make` makes the one at a place."""
        self._places, self._make = range(count), make

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._places)

    def __getitem__(self, place: Any) -> Any:
        """Make one item."""
        return self._make(self._places[place])


@dataclass(frozen=True)
class Ensemble:
    """A choice of checkpoints and how to run them. It is small, so that it can go into every task."""

    run: Run
    checkpoints: tuple[Checkpoint, ...]
    kernels: Kernels = "fused"
    gpu: bool = False
    tasks_per_gpu: int = 1
    members_per_step: int | None = None  # drawn for each step; None: every step takes all
    views: tuple[str, ...] = PLAIN  # the mix that members look through
    input_size: int | None = None  # side of what they see of pictures of their own size

    @property
    def device(self) -> torch.device:
        """The device of the calling task."""
        return torch.device("cuda", own_gpu()) if self.gpu else torch.device("cpu")

    @property
    def draws_few(self) -> bool:
        """True if each step on a CPU draws a few members, so that a worker need not hold all.

        On a GPU, loading a network takes longer than a step, and compiled networks share their code.
        """
        return self.members_per_step is not None and not self.gpu and self.kernels != "compiled"

    def held(self, size: int) -> int:
        """Return how many networks a worker has in memory at a time: all, unless steps draw a few of more than fit.

        Args:
            size: of the weights of a network, in bytes.
        """
        return min(len(self.checkpoints), max(HELD_BYTES // size, self.members_per_step or 0)) if self.draws_few else len(self.checkpoints)

    def members(self, means: Sequence[Tensor] | None = None) -> Sequence[Member]:
        """Return the frozen networks through each view, the views of a network side by side.

        Args:
            means: class means `(K, D)` of each of them, if the method aligns features.

        Raises:
            ValueError: see `load_networks`.
        """
        networks, device, seen = load_networks(self), self.device, kinds(self.views)

        def member(place: int) -> Member:
            return Member(networks[place // len(seen)], None if means is None else means[place].to(device), seen[place % len(seen)])

        members = OnDemand(len(networks) * len(seen), member)
        return members if isinstance(networks, OnDemand) else list(members)


def load_networks(ensemble: Ensemble) -> Sequence[Network]:
    """Return the frozen networks of the checkpoints, on the device of the calling task. Where not all are held, they are loaded when used.

    Raises:
        ValueError: a checkpoint is missing or was altered since it was written.
    """
    return _networks(ensemble, ensemble.device)


@lru_cache(maxsize=1)  # once per worker process, and not per shard; again if its GPU changes
def _networks(ensemble: Ensemble, device: torch.device) -> Sequence[Network]:
    share_memory(device, ensemble.tasks_per_gpu)
    trained, pack = (Manifest.load(ensemble.run, stage) for stage in ("surrogate", "pack"))
    checkpoints = ensemble.checkpoints

    def load(place: int) -> Network:
        return _load(ensemble, checkpoints[place], trained, pack).to(device)

    def load_one_more(place: int) -> Network:
        gc.collect()  # torch.fx ties a trunk and its graph into a cycle, so that what gave way before would stay in memory
        return load(place)

    if ensemble.draws_few:
        bare = [checkpoint_network(name, trained, pack, ensemble.input_size) for name in {checkpoint.network for checkpoint in checkpoints}]
        held = ensemble.held(max((sum(weights.nbytes for weights in network.parameters()) for network in bare), default=1))
        if held < len(checkpoints):
            return OnDemand(len(checkpoints), lru_cache(held)(load_one_more))
    networks = tuple(map(load, range(len(checkpoints))))
    if ensemble.kernels == "compiled":
        for name in {checkpoint.network for checkpoint in checkpoints}:
            compile_together([n for n, checkpoint in zip(networks, checkpoints, strict=True) if checkpoint.network == name])
    return networks


def _load(ensemble: Ensemble, checkpoint: Checkpoint, trained: Manifest, pack: Manifest) -> Network:
    surrogate = ensemble.run.child("surrogate")
    where, advice = f"{surrogate.uri}/{checkpoint.file}", f"delete {surrogate.uri} and run that stage again"
    try:
        data = surrogate.read(checkpoint.file)
    except FileNotFoundError as error:
        raise ValueError(f"{where} is missing: {advice}") from error
    if sha256(data) != checkpoint.sha256:
        raise ValueError(f"{where} was altered or truncated since it was written: {advice}")
    network = checkpoint_network(checkpoint.network, trained, pack, ensemble.input_size)
    network.load_state_dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True), assign=True)
    return freeze(network, ensemble.kernels)
