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

from pipeline.networks import build_network
from pipeline.shards import sha256
from pipeline.stage import Manifest, digest
from pipeline.storage import Folder
from sep.ensemble import Member, equally_spaced, freeze
from sep.models import Network

INDEX = "checkpoints.json"


@dataclass(frozen=True)
class Checkpoint:
    """One epoch's weights, as the surrogate's index records them."""

    epoch: int
    file: str
    sha256: str


def weights_digest(index: Sequence[Mapping[str, Any]]) -> str:
    """Digest of the surrogate's outcome: every epoch, its file and that file's hash."""
    return digest([[entry[name] for name in ("epoch", "file", "sha256")] for entry in index])


def choose(run: Folder, count: int) -> tuple[Checkpoint, ...]:
    """The checkpoints of an ensemble of `count`, equally spaced; of one, the last; of none, nothing.

    Raises:
        ValueError: the index is not the one the surrogate stage wrote.
    """
    entries = json.loads(run.child("surrogate").read(INDEX))["checkpoints"]
    if weights_digest(entries) != Manifest.load(run, "surrogate").counts["weights_sha256"]:
        where = run.child("surrogate").uri
        raise ValueError(f"{where}/{INDEX} was altered since it was written: delete {where} and run that stage again")
    index = [Checkpoint(entry["epoch"], entry["file"], entry["sha256"]) for entry in entries]
    return tuple(index[epoch] for epoch in equally_spaced(len(index), count)) if count else ()


@lru_cache(maxsize=1)  # a worker process reads and freezes the ensemble once, not once per shard
def load_networks(run: Folder, checkpoints: tuple[Checkpoint, ...], device: torch.device) -> tuple[Network, ...]:
    """The frozen networks of some checkpoints.

    Raises:
        ValueError: a checkpoint is missing or was altered since it was written.
    """
    network = None
    frozen = []
    for checkpoint in checkpoints:
        where = f"{run.uri}/surrogate/{checkpoint.file}"
        try:
            data = run.child("surrogate").read(checkpoint.file)
        except FileNotFoundError as error:
            raise ValueError(f"{where} is missing: delete {run.uri}/surrogate and run that stage again") from error
        if sha256(data) != checkpoint.sha256:
            raise ValueError(f"{where} was altered or truncated since it was written: delete {run.uri}/surrogate and run that stage again")
        if network is None:
            network = build_network(Manifest.load(run, "surrogate").counts["network"], Manifest.load(run, "pack"))
        network.load_state_dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
        frozen.append(freeze(network).to(device))
    return tuple(frozen)


def load_members(run: Folder, checkpoints: tuple[Checkpoint, ...], means: Sequence[Tensor] | None, device: torch.device) -> list[Member]:
    """The frozen networks, each with its own class means `(K, D)` where means are given."""
    networks = load_networks(run, checkpoints, device)
    if means is None:
        return [Member(network) for network in networks]
    return [Member(network, mean.to(device)) for network, mean in zip(networks, means, strict=True)]
