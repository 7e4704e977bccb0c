"""The images that are protected where it is a share of each class: chosen by a rule before anything is crafted, and recorded by key.

Zhe and Sakuma 2024 ("Parameter Matching Attack", arXiv 2407.02437) ask what protects when only a part of the data can be changed. Their
answer is to craft changes after which training on the mix ends near a bad model. Here the methods stay as they are, and the question is
which images to change: any, or images that the surrogate finds typical of their class, or untypical.

Legend: B images, K classes, D feature width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache, partial

import pyarrow as pa
import torch
from torch import Tensor

from cluster.executor import Executor
from cluster.work import Work
from pipeline.config.class_selection import portion
from pipeline.config.seeds import derive
from pipeline.protection.checkpoints import Ensemble, load_networks
from pipeline.protection.class_means import means_of, seen_levels
from pipeline.protection.site import Site
from pipeline.shards.shard import read_shard
from pipeline.shards.tables import read_table, rows_to_table, write_table
from pipeline.shards.tensors import to_images
from pipeline.storage.folder import Folder
from pipeline.storage.layout import CHOSEN
from pipeline.storage.records import digest
from pipeline.storage.stage import Manifest, Shard
from pipeline.training.clean_shares import of_classes, protected_labels
from sep.execution import MicroBatch, arithmetic, use_cpu
from sep.models import Network
from sep.pictures import Images, pixels, seen_shape
from sep.views.registry import PLAIN, VIEWS, Look

SCHEMA = pa.schema([("key", pa.string())])


def choose_images(site: Site, executor: Executor) -> str:
    """Write the keys of the images to protect, and return their digest; nothing where all of their classes are.

    Raises:
        WorkFailed: features of some shard could not be had.
    """
    config = site.config.protect
    if config.share == 1:
        return ""
    labels = protected_labels(site.clean, site.released, site.classes)
    apart = {} if config.chosen == "random" else _distances(site, executor)
    sign = -1 if config.chosen == "far-mean" else 1
    keys = choose(labels, config.share, {key: sign * distance for key, distance in apart.items()}, site.config.seed)
    write_table(site.out, CHOSEN, rows_to_table([{"key": key} for key in keys], SCHEMA))
    return digest(keys)


def choose(labels: Mapping[str, int], share: float, scores: Mapping[str, float], seed: int) -> list[str]:
    """Return the keys of a share of each class, rounded, in order: those with the lowest scores, and of equal ones by a keyed hash.

    Args:
        labels: by key.
        share: above 0, up to 1.
        scores: by key; 0 where there is none.
        seed: the run's, which decides the hash.
    """
    chosen: list[str] = []
    for keys in of_classes(labels).values():
        keys.sort(key=lambda key: (scores.get(key, 0.0), derive(seed, "share", key)))
        chosen += keys[: portion(share, len(keys))]
    return sorted(chosen)


@lru_cache(maxsize=1)  # once per worker process, and not per shard
def chosen_keys(folder: Folder, recorded: str) -> frozenset[str]:
    """Return the keys that were written.

    Raises:
        ValueError: they were altered since.
    """
    keys = read_table(folder, CHOSEN)["key"].to_pylist()
    if digest(keys) != recorded:
        raise ValueError(f"{folder.uri}/{CHOSEN} was altered while it was in use: run the protect stage again")
    return frozenset(keys)


def _distances(site: Site, executor: Executor) -> dict[str, float]:
    """Return the distance of each released image to the mean of its class, in features of the surrogate's last checkpoint."""
    last = replace(site.ensemble, checkpoints=site.ensemble.checkpoints[-1:], kernels="fused", views=PLAIN, members_per_step=None)
    learned, capacity = Manifest.load(last.run, "pack"), site.capacity  # of the run, where this is an addition
    number, shards, seed = len(learned.counts["classes"]), learned.shards["train"], site.config.seed
    (means,), _ = means_of(last, number, None, seed, shards, executor, capacity, keep_going=False)
    pieces = [Work(shard.name, (last, means, site.clean, shard), shard.count) for shard in site.released]
    found: dict[str, float] = {}
    for _, some in executor.run_all(shard_distances, pieces, what="distances", capacity=capacity):
        found |= some
    return found


def shard_distances(ensemble: Ensemble, means: Tensor, clean: Folder, shard: Shard) -> dict[str, float]:
    """Return the distances of a clean shard's images to the means of their classes, by key. This is the body of a task."""
    use_cpu(1)  # another number, or another algorithm, could round features differently
    torch.backends.cudnn.deterministic = True
    samples = read_shard(clean, shard)
    images, labels = to_images(samples, ensemble.input_size)
    (network,) = load_networks(ensemble)
    batch = MicroBatch.fitting(seen_shape(images, ensemble.input_size), ensemble.device)
    part = partial(_apart, network, images, means[labels], ensemble.input_size)
    apart = torch.cat(list(batch.run(part, len(images), pixels(images))))
    return dict(zip([sample.key for sample in samples], apart.tolist(), strict=True))


@torch.inference_mode()
def _apart(network: Network, images: Images, wanted: Tensor, input_size: int | None, part: slice) -> Tensor:
    """Return `||h(x) - mu||^2 / D` of some images, `(b,)`, to their rows of `(B, D)`, on the CPU."""
    device = network.mean.device
    seen = seen_levels(network, VIEWS["none"], Look(), images[part], input_size)
    with arithmetic(device, "tf32"):
        return (network.features(seen) - wanted[part].to(device)).square().mean(1).cpu()
