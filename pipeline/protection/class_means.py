"""Class means of every checkpoint's features through every view, over the whole training set: a preparation, computed shard by shard.

Legend: N checkpoints, K classes, D feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial, reduce

import torch
from torch import Tensor

from cluster.executor import Executor
from cluster.work import Capacity, Chain, Work, WorkFailed
from pipeline.config.seeds import derive
from pipeline.protection.checkpoints import Ensemble, load_networks
from pipeline.shards.shard import read_shard
from pipeline.shards.tensors import Labelled, to_images
from pipeline.storage.stage import Shard
from sep.ensemble import class_sums
from sep.execution import MicroBatch, to_device, use_cpu
from sep.models import Network
from sep.pictures import Images, Pictures, flat, pixels, seen_shape
from sep.views.registry import Look, OwnSize, View, kinds

Sums = tuple[list[Tensor], Tensor]  # for each checkpoint and view `(K, D)` float64 sums of features; `(K,)` counts


def _read(ensemble: Ensemble, num_classes: int, batch_size: int | None, shard: Shard, seed: int) -> Labelled:
    return to_images(read_shard(ensemble.run.child("pack"), shard), ensemble.input_size)


def _sums(ensemble: Ensemble, num_classes: int, batch_size: int | None, shard: Shard, seed: int, read: Labelled) -> Sums:
    """Return one clean shard's share. The images of a shard share the draws of a view."""
    use_cpu(1)  # another number, or another algorithm, could round features differently
    torch.backends.cudnn.deterministic = True
    images, labels = read
    batch = MicroBatch.fitting(seen_shape(images, ensemble.input_size), ensemble.device, batch_size or "auto")
    sums = []
    looks = [(view, Look(derive(seed, "class means", view.name, shard.name))) for view in kinds(ensemble.views)]
    for network in load_networks(ensemble):
        for view, look in looks:
            summed = partial(_sum, network, view, look, images, labels, num_classes, ensemble.input_size)
            parts = list(batch.run(summed, len(images), pixels(images)))
            sums.append(reduce(torch.add, [part for part, _ in parts]))
    return sums, torch.bincount(labels, minlength=num_classes)


def _sum(
    network: Network, view: View, look: Look, images: Images, labels: Tensor, num_classes: int, input_size: int | None, part: slice
) -> tuple[Tensor, Tensor]:
    return class_sums(network, [(seen_levels(network, view, look, images[part], input_size), labels[part])], num_classes)


def seen_levels(network: Network, view: View, look: Look, images: Images, input_size: int | None) -> Tensor:
    """Return images on the network's device as it sees them through a view; pictures of their own size as in tests."""
    if isinstance(images, Pictures) and input_size:
        look = replace(look, own_size=OwnSize(images.sizes, input_size))
    return view.on_levels(to_device(flat(images)[0], network.mean, "fused"), look)


def _unchanged(ensemble: Ensemble, num_classes: int, batch_size: int | None, shard: Shard, seed: int, read: Labelled, sums: Sums) -> Sums:
    return sums


SUM_SHARD = Chain(_read, _sums, _unchanged)


def add(*shares: Sums) -> Sums:
    """Add several shares. Sums are exact, so their order does not matter."""
    members = zip(*(sums for sums, _ in shares), strict=True)
    return [reduce(torch.add, parts) for parts in members], reduce(torch.add, [counts for _, counts in shares])


def means_of(
    ensemble: Ensemble,
    num_classes: int,
    batch_size: int | None,
    seed: int,
    shards: Sequence[Shard],
    executor: Executor,
    capacity: Capacity,
    keep_going: bool,
) -> tuple[list[Tensor], WorkFailed | None]:
    """Combine every shard's share: for each checkpoint and view its `(K, D)` float32 means, and the failure of shards that they lack.

    Raises:
        WorkFailed: shards failed, after all others were finished, and the stage was not asked to keep going.
        ValueError: without the shards that failed a class has no image.
    """
    if ensemble.kernels == "compiled":  # for one pass, which is not worth compiling for
        ensemble = replace(ensemble, kernels="fused")
    pieces = [Work(shard.name, (ensemble, num_classes, batch_size, shard, seed), shard.count) for shard in shards]
    total, failed = executor.combine_all(SUM_SHARD, add, pieces, what="class means", capacity=capacity)
    if failed is not None and (total is None or not keep_going):
        raise failed
    assert total is not None
    sums, counts = total
    if not counts.all():
        raise ValueError(f"class means: no image of the classes {(counts == 0).nonzero().flatten().tolist()} could be read")
    return [(each / counts[:, None]).float() for each in sums], failed
