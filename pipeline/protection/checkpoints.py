"""The surrogate's checkpoints as an ensemble: read and checked, frozen, and with class means over the whole training set."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from cluster.work import own_gpu
from pipeline.storage.layout import CHECKPOINTS
from pipeline.storage.records import digest, sha256
from pipeline.storage.run import Run
from pipeline.storage.stage import Manifest
from pipeline.training.networks import build_network
from sep.choices import Kernels
from sep.ensemble import Member, compile_together, equally_spaced, freeze
from sep.execution import share_memory
from sep.models import Network


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


def read_index(run: Run) -> dict[str, list[Checkpoint]]:
    """Return the checkpoints of each network, in the order of the epochs.

    Raises:
        ValueError: the index was altered since the surrogate stage wrote it.
    """
    where, recorded = run.child("surrogate"), Manifest.load(run, "surrogate").counts["weights_sha256"]
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


@dataclass(frozen=True)
class Ensemble:
    """A choice of checkpoints and how to run them. It is small, so that it can go into every task."""

    run: Run
    checkpoints: tuple[Checkpoint, ...]
    kernels: Kernels = "fused"
    gpu: bool = False
    tasks_per_gpu: int = 1

    @property
    def device(self) -> torch.device:
        """The device of the calling task."""
        return torch.device("cuda", own_gpu()) if self.gpu else torch.device("cpu")

    def members(self, means: Sequence[Tensor] | None = None) -> list[Member]:
        """Return the frozen networks, each with its own class means `(K, D)` if means are given.

        Raises:
            ValueError: see `load_networks`.
        """
        networks = load_networks(self)
        if means is None:
            return [Member(network) for network in networks]
        return [Member(network, mean.to(self.device)) for network, mean in zip(networks, means, strict=True)]


def load_networks(ensemble: Ensemble) -> tuple[Network, ...]:
    """Return the frozen networks of the checkpoints, on the device of the calling task.

    Raises:
        ValueError: a checkpoint is missing or was altered since it was written.
    """
    return _load(ensemble, ensemble.device)


@lru_cache(maxsize=1)  # once per worker process, and not per shard; again if its GPU changes
def _load(ensemble: Ensemble, device: torch.device) -> tuple[Network, ...]:
    share_memory(device, ensemble.tasks_per_gpu)
    surrogate, pack, frozen = ensemble.run.child("surrogate"), Manifest.load(ensemble.run, "pack"), []
    for checkpoint in ensemble.checkpoints:
        where, advice = f"{surrogate.uri}/{checkpoint.file}", f"delete {surrogate.uri} and run that stage again"
        try:
            data = surrogate.read(checkpoint.file)
        except FileNotFoundError as error:
            raise ValueError(f"{where} is missing: {advice}") from error
        if sha256(data) != checkpoint.sha256:
            raise ValueError(f"{where} was altered or truncated since it was written: {advice}")
        network = build_network(checkpoint.network, pack)
        network.load_state_dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
        frozen.append(freeze(network, ensemble.kernels).to(device))
    if ensemble.kernels == "compiled":
        for name in {checkpoint.network for checkpoint in ensemble.checkpoints}:
            compile_together([n for n, checkpoint in zip(frozen, ensemble.checkpoints, strict=True) if checkpoint.network == name])
    return tuple(frozen)
