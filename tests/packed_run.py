"""A run that is packed and has checkpoints: what the protect stage starts from."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline.config.schema import RunConfig
from pipeline.protection.checkpoints import INDEX, weights_digest
from pipeline.storage.folder import Folder
from pipeline.storage.records import sha256, to_json
from pipeline.storage.stage import Manifest, Stage
from pipeline.training.networks import build_network
from sep.models import NetworkName


def write_checkpoints(folder: Folder, networks: Sequence[NetworkName]) -> None:
    """A finished surrogate stage: three epochs of each network."""
    manifest = Manifest.load(folder, "pack")
    stage = Stage(folder, "surrogate", {"networks": list(networks)}, seed=0, inputs=("pack",), overwrite=True)
    index: list[dict[str, Any]] = []
    for network in networks:
        for epoch in range(3):
            torch.manual_seed(epoch)
            stream = io.BytesIO()
            torch.save(build_network(network, manifest).state_dict(), stream)
            file = f"{network}/epoch_{epoch:04d}/weights.pt"
            stage.folder.write(file, stream.getvalue())
            index.append({"network": network, "epoch": epoch, "file": file, "sha256": sha256(stream.getvalue()), "metrics": {}})
    stage.folder.write(INDEX, to_json({"checkpoints": index}))
    stage.finish({"networks": list(networks), "weights_sha256": weights_digest(index)})


def copy(packed: tuple[RunConfig, Folder], target: Path, **changes: object) -> tuple[RunConfig, Folder]:
    """The same inputs in a folder of its own, with another protect configuration."""
    config, source = packed
    folder = Folder.open(str(target))
    for name in source.names(recursive=True):
        if not name.startswith("protect/"):
            folder.write(name, source.read(name))
    return replace(config, run=str(target), protect=replace(config.protect, **changes)), folder  # type: ignore[arg-type]


def digests(manifest: Manifest) -> list[str]:
    return [shard.sha256 for shard in manifest.shards["train"]]
