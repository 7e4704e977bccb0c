"""Class means of every checkpoint's features over the whole training set: once per run, shard by shard.

Legend: N checkpoints, K classes, D feature width.
"""

from __future__ import annotations

import io
from dataclasses import replace
from functools import lru_cache, partial, reduce

import torch
from torch import Tensor

from cluster.pool import Work, run_all
from cluster.session import Resources
from pipeline.batches import to_tensors
from pipeline.ensemble import Ensemble, load_networks
from pipeline.shards import Shard, read_shard, sha256
from pipeline.storage import Folder
from sep.ensemble import class_sums
from sep.execution import MicroBatch
from sep.models import Network

MEANS, DIGEST = "class_means.pt", "class_means.sha256"


def sum_shard(ensemble: Ensemble, num_classes: int, batch_size: int | None, shard: Shard) -> tuple[list[Tensor], Tensor]:
    """One clean shard's share: for each checkpoint `(K, D)` float64 sums, and `(K,)` counts. The body of a Ray task."""
    torch.set_num_threads(1)  # another number, or another algorithm, could round sums differently
    torch.backends.cudnn.deterministic = True
    images, labels = to_tensors(read_shard(ensemble.run.child("pack"), shard))
    batch = MicroBatch(batch_size) if batch_size else MicroBatch.fitting(images.shape[1:], ensemble.device)
    sums = []
    for network in load_networks(ensemble):
        parts = list(batch.run(partial(_sum, network, images, labels, num_classes), len(images)))
        sums.append(reduce(torch.add, [part for part, _ in parts]))
    return sums, reduce(torch.add, [counts for _, counts in parts])


def _sum(network: Network, images: Tensor, labels: Tensor, num_classes: int, part: slice) -> tuple[Tensor, Tensor]:
    return class_sums(network, [(images[part], labels[part])], num_classes)


def write_means(
    folder: Folder, ensemble: Ensemble, num_classes: int, batch_size: int | None, shards: list[Shard], resources: Resources
) -> str:
    """Combine every shard's share in the order of the shards into `class_means.pt`, and return the digest of that file.

    What an earlier start of the stage has left is used again: a release is crafted towards one set of means.

    Raises:
        WorkFailed: shards failed, after all others were finished.
    """
    if folder.exists(MEANS) and folder.exists(DIGEST):
        kept = folder.read(DIGEST).decode()
        if sha256(folder.read(MEANS)) == kept:
            return kept
    if ensemble.kernels == "compiled":  # for one pass, which is not worth compiling for
        ensemble = replace(ensemble, kernels="fused")
    pieces = [Work(shard.name, (ensemble, num_classes, batch_size, shard), shard.count) for shard in shards]
    shares = dict(run_all(sum_shard, pieces, what="class means", at_once=resources.tasks, gpus=resources.gpu))
    ordered = [shares[shard.name] for shard in shards]
    counts = reduce(torch.add, [count for _, count in ordered])
    means = [(reduce(torch.add, parts) / counts[:, None]).float() for parts in zip(*(sums for sums, _ in ordered), strict=True)]
    stream = io.BytesIO()
    torch.save(means, stream)
    folder.write(MEANS, stream.getvalue())
    folder.write(DIGEST, sha256(stream.getvalue()).encode())
    return sha256(stream.getvalue())


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
