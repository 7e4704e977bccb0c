"""Preparations: what some methods learn from the whole training set before the first shard. A function for each kind, in a table.

Legend: B images, C channels, H W pixels, K protected classes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from cluster.executor import Executor
from cluster.work import Work
from pipeline.config.schema import RunConfig
from pipeline.protection.class_means import means_of
from pipeline.protection.noise import make_noise, say_unfinished
from pipeline.protection.preparation_files import Prepared, read_prepared, write_file, write_prepared
from pipeline.protection.site import Site
from pipeline.shards.shard import read_shard
from pipeline.shards.tensors import to_tensors
from pipeline.storage.folder import Folder
from pipeline.storage.layout import EVERY_SHARD
from pipeline.storage.stage import Shard
from sep.ensemble import means_precision
from sep.execution import use_cpu
from sep.methods.one_pixel import moments, search
from sep.methods.registry import Preparation

log = logging.getLogger(__name__)

Moments = tuple[Tensor, Tensor, Tensor]


def prepare(site: Site, executor: Executor) -> Prepared:
    """Return what the method needs. One that an earlier start finished is used again, unless shards are missing from it.

    Raises:
        ValueError: the training set cannot be prepared as it is.
        WorkFailed: shards or the task failed.
    """
    if (needed := site.config.protect.kind.preparation) is None:
        return Prepared()
    if (found := read_prepared(site.out, site.made_from)) and not found.without:
        return found
    PREPARATIONS[needed](site, executor)
    made = read_prepared(site.out, site.made_from, check_files=False)
    assert made is not None
    say_unfinished(site.config, made.found)
    return made


def kept(folder: Folder, config: RunConfig) -> Prepared:
    """Return what a finished run was protected with, for images that are added to it.

    Args:
        folder: of the run's protect stage.
        config: of the run.

    Raises:
        ValueError: it cannot be read any more.
    """
    kind = config.protect.kind
    if not kind.preparation:
        return Prepared()
    if (found := read_prepared(folder, None, check_files=False)) is None:
        raise ValueError(f"{folder.uri} has no {kind.preparation.replace('-', ' ')} that can be read: run that stage again")
    return replace(found, found={**found.found, "noise_rounds": 0} if kind.noise_rounds else found.found, seconds=0)


def _class_means(site: Site, executor: Executor) -> None:
    begun, size, number = time.monotonic(), site.config.protect.batch_size, len(site.pack.counts["classes"])
    batch_size = None if size == "auto" else size
    shards, seed, keep_going = site.shards, site.config.seed, site.config.keep_going
    means, failed = means_of(site.ensemble, number, batch_size, seed, shards, executor, site.capacity, keep_going)
    files = write_file(site.out, EVERY_SHARD, means)
    found = {"class_means_precision": means_precision(torch.device("cuda" if site.ensemble.gpu else "cpu"))}
    write_prepared(site.out, site.made_from, files, found, time.monotonic() - begun, list(failed.causes) if failed else ())


def _pixels(site: Site, executor: Executor) -> None:
    """Find the pixel and colour of each class from the moments of every shard."""
    begun = time.monotonic()
    pieces = [Work(shard.name, (site.clean, site.classes, shard), shard.count) for shard in site.shards]
    total, failed = executor.combine_all(shard_moments, add_moments, pieces, what="pixels", capacity=site.capacity)
    if failed is not None and (total is None or not site.config.keep_going):
        raise failed
    assert total is not None
    if not total[0].all():
        lacking = [site.classes[i] for i in (total[0] == 0).nonzero().flatten().tolist()]
        raise ValueError(f"pixels: no image of the classes {lacking} could be read")
    files = write_file(site.out, EVERY_SHARD, search(*total))
    write_prepared(site.out, site.made_from, files, {}, time.monotonic() - begun, list(failed.causes) if failed else ())


def shard_moments(clean: Folder, classes: tuple[int, ...], shard: Shard) -> Moments:
    """Return one clean shard's share. This is the body of a task."""
    use_cpu(1)
    images, labels = to_tensors(read_shard(clean, shard))
    among = torch.tensor(classes)
    own = torch.isin(labels, among)
    return moments(images[own], torch.searchsorted(among, labels[own]), len(classes))


def add_moments(*shares: Moments) -> Moments:
    """Add several shares. They are whole numbers, so their order does not matter."""
    counts, sums, products = (reduce(torch.add, parts) for parts in zip(*shares, strict=True))
    return counts, sums, products


PREPARATIONS: dict[Preparation, Callable[[Site, Executor], None]] = {
    "class-means": _class_means,
    "own-noise": make_noise,
    "class-noise": make_noise,
    "pixels": _pixels,
}
