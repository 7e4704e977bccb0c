"""Class means of every checkpoint's features over the whole training set: once per run, shard by shard, combined where they are made.

Legend: N checkpoints, K classes, D feature width.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial, reduce
from typing import Any

import torch
from torch import Tensor

from cluster.executor import Executor
from cluster.work import Capacity, Work
from pipeline.protection.checkpoints import Ensemble, load_networks
from pipeline.shards.shard import read_shard
from pipeline.shards.tensors import to_tensors
from pipeline.storage.folder import Folder
from pipeline.storage.records import sha256, to_json
from pipeline.storage.stage import Shard
from sep.ensemble import class_sums
from sep.execution import MicroBatch, use_cpu
from sep.models import Network

Sums = tuple[list[Tensor], Tensor]  # for each checkpoint `(K, D)` float64 sums of features; `(K,)` counts
MEANS, DIGEST = "class_means.pt", "class_means.json"


def sum_shard(ensemble: Ensemble, num_classes: int, batch_size: int | None, shard: Shard) -> Sums:
    """One clean shard's share. The body of a task."""
    use_cpu(1)  # another number, or another algorithm, could round features differently
    torch.backends.cudnn.deterministic = True
    images, labels = to_tensors(read_shard(ensemble.run.child("pack"), shard))
    batch = MicroBatch(batch_size) if batch_size else MicroBatch.fitting(images.shape[1:], ensemble.device)
    sums = []
    for network in load_networks(ensemble):
        parts = list(batch.run(partial(_sum, network, images, labels, num_classes), len(images)))
        sums.append(reduce(torch.add, [part for part, _ in parts]))
    return sums, torch.bincount(labels, minlength=num_classes)


def _sum(network: Network, images: Tensor, labels: Tensor, num_classes: int, part: slice) -> tuple[Tensor, Tensor]:
    return class_sums(network, [(images[part], labels[part])], num_classes)


def add(*shares: Sums) -> Sums:
    """Several shares as one: sums are exact, so in any order."""
    members = zip(*(sums for sums, _ in shares), strict=True)
    return [reduce(torch.add, parts) for parts in members], reduce(torch.add, [counts for _, counts in shares])


def write_means(
    folder: Folder,
    ensemble: Ensemble,
    num_classes: int,
    batch_size: int | None,
    shards: Sequence[Shard],
    executor: Executor,
    capacity: Capacity,
    keep_going: bool,
) -> str:
    """Combine every shard's share into `class_means.pt`, and return the digest of that file.

    What an earlier start of the stage has left is used again, if no shard was left out: a release is crafted towards one set of means.

    Raises:
        WorkFailed: shards failed, after all others were finished, and we are not to keep going without them.
        ValueError: without the shards that failed a class has no image.
    """
    if (kept := read_digest(folder)) and kept["without"] == [] and sha256(folder.read(MEANS)) == kept["sha256"]:
        return str(kept["sha256"])
    if ensemble.kernels == "compiled":  # for one pass, which is not worth compiling for
        ensemble = replace(ensemble, kernels="fused")
    pieces = [Work(shard.name, (ensemble, num_classes, batch_size, shard), shard.count) for shard in shards]
    total, failed = executor.combine_all(sum_shard, add, pieces, what="class means", capacity=capacity)
    if failed is not None and (total is None or not keep_going):
        raise failed
    assert total is not None
    sums, counts = total
    if not counts.all():
        raise ValueError(f"class means: no image of the classes {(counts == 0).nonzero().flatten().tolist()} could be read")
    means = [(each / counts[:, None]).float() for each in sums]
    stream = io.BytesIO()
    torch.save(means, stream)
    folder.write(MEANS, stream.getvalue())
    digest = sha256(stream.getvalue())
    folder.write(DIGEST, to_json({"sha256": digest, "without": sorted(failed.causes) if failed else []}))
    return digest


def read_digest(folder: Folder) -> dict[str, Any]:
    """The digest of `class_means.pt`, and which shards were left out of it; nothing if there is no such file, or none that can be read."""
    try:
        said: dict[str, Any] = json.loads(folder.read(DIGEST))
        return said if folder.exists(MEANS) and said.keys() == {"sha256", "without"} else {}
    except (FileNotFoundError, ValueError, AttributeError):
        return {}


@lru_cache(maxsize=1)
def load_means(folder: Folder, digest: str) -> list[Tensor]:
    """For each checkpoint its `(K, D)` float32 means.

    Raises:
        ValueError: the file was altered since it was written.
    """
    data = folder.read(MEANS)
    if sha256(data) != digest:
        raise ValueError(f"{folder.uri}/{MEANS} was altered while it was in use: run the protect stage again")
    means: list[Tensor] = torch.load(io.BytesIO(data), weights_only=True)
    return means
