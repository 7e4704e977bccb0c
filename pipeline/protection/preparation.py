"""Preparations: what some methods learn from the whole training set before the first shard. A function for each kind, in a table.

Legend: B images, C channels, H W pixels, K protected classes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from cluster.executor import Executor
from cluster.work import Capacity, Work, own_gpu
from pipeline.config.schema import RunConfig
from pipeline.config.seeds import derive, generator
from pipeline.protection.choice import chosen_keys
from pipeline.protection.class_means import means_of
from pipeline.protection.preparation_files import Prepared, read_prepared, write_file, write_prepared
from pipeline.protection.site import Site
from pipeline.shards.shard import read_shard
from pipeline.shards.tensors import Loading, load_seen, to_tensors
from pipeline.storage.folder import Folder
from pipeline.storage.layout import EVERY_SHARD
from pipeline.storage.stage import Shard
from pipeline.training.initial import new_network
from sep.craft_config import CraftConfig
from sep.ensemble import means_precision
from sep.execution import use_cpu
from sep.methods.error_minimising import NoiseConfig, Perturbed, class_rows, minimise
from sep.methods.one_pixel import moments, search
from sep.methods.registry import ENOUGH, Preparation
from sep.objective import choose_targets

log = logging.getLogger(__name__)

Moments = tuple[Tensor, Tensor, Tensor]
OWN_NOISE, OWN_MOMENTUM = 2, 4  # bytes in memory for each value of an image, beside its own


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
    _say_unfinished(site.config.protect, made.found)
    return made


def _say_unfinished(config: CraftConfig, found: Mapping[str, Any]) -> None:
    """Warn of error-minimising noise that ran out of rounds, as it does in small batches, unless so many were asked for."""
    error = found.get("noise_error", 0.0)
    if config.noise_rounds is None and not config.kind.targets and error > ENOUGH:
        log.warning(
            "noise: after %d rounds the network still gets %.1f %% of the training images wrong, where %g %% is the aim: the protection "
            "may be weak; --protect.noise-rounds %d makes it stronger",
            *(found["noise_rounds"], error, ENOUGH, 4 * found["noise_rounds"]),
        )


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


def check_noise_memory(config: RunConfig, images: int, height: int, width: int) -> None:
    """Check that a method that makes the noise of all images together has room for them.

    Raises:
        ValueError: the training set is larger than the memory limit.
    """
    if not ("protect" in config.stages and config.protect.kind.noise_rounds):
        return
    own = config.protect.kind.preparation == "own-noise"
    each = 1 + own * (OWN_NOISE + (OWN_MOMENTUM if config.protect.momentum else 0))
    needed, limit = each * images * 3 * height * width / 1e6, config.memory_limit_mb
    if needed > limit:
        raise ValueError(
            f"{config.protect.method} holds all training images and their noise in memory, which take {needed:,.0f} MB, but "
            f"memory_limit_mb is {limit:,}: raise it (--memory-limit-mb), pack fewer images (--pack.max-train-images), or take a method "
            "that streams them (--protect.method sep-fa-drawn)"
        )


def _noise(site: Site, executor: Executor) -> None:
    """Make error-minimising noise in one task that holds the training set in memory.

    Raises:
        ValueError: the training set is larger than the memory limit.
    """
    images = sum(shard.count for shard in site.shards)
    side, counts = site.config.input_size, site.pack.counts
    check_noise_memory(site.config, images, side or counts["height"], side or counts["width"])
    cpus = 1 if site.resources.gpu else min(site.resources.cpus_for(1), site.resources.tasks)
    capacity = Capacity(1, cpus=cpus, gpus=site.resources.gpu)
    log.info("protect: training a %s against its noise", site.config.surrogate.trained[0])
    for _ in executor.run_all(make_noise, [Work("noise", (site, cpus), images)], what="noise", capacity=capacity):
        pass


def make_noise(site: Site, threads: int) -> None:
    """Train a network against its noise and write the noise, one file a shard or one for all classes. This is the body of a task."""
    begun = time.monotonic()
    use_cpu(1)  # another number could round sums differently; `threads` compute apart from each other
    torch.backends.cudnn.deterministic = True
    config, among = site.config.protect, torch.tensor(site.classes)
    device = torch.device("cuda", own_gpu()) if site.resources.gpu else torch.device("cpu")
    images, labels = load_seen(site.clean, site.shards, Loading(input_size=site.config.input_size))
    protected, own_rows = torch.isin(labels, among), config.kind.preparation == "own-noise"
    if site.chosen:
        keys = chosen_keys(site.out, site.chosen)
        protected &= torch.tensor([key in keys for key in _keys(site)])
    ranks = torch.searchsorted(among, labels)
    numbers, count = (protected.cumsum(0) - 1, int(protected.sum())) if own_rows else _class_rows(site, ranks)
    rows = torch.where(protected, numbers, -1)
    (name,), initial = site.config.surrogate.trained, site.config.surrogate.pretrained
    torch.manual_seed(derive(site.config.seed, "noise"))
    network = new_network(name, initial, site.pack, site.config.input_size).to(device).to(memory_format=torch.channels_last)
    settings = NoiseConfig(
        training=site.config.surrogate,
        steps=config.noise_steps,
        rounds=config.noise_rounds or config.kind.noise_rounds,
        enough=None if config.noise_rounds else config.kind.enough,
        views=site.config.views,
        **{name: getattr(config, name) for name in ("eps_levels", "momentum", "normalised", "precision", "kernels")},
    )
    assert config.channels is not None
    wanted = labels.clone()
    if config.kind.targets:
        drawn, own = generator(site.config.seed, "targets"), labels[protected]
        wanted[protected] = choose_targets(config.targets, own, site.classes, drawn, torch.zeros_like(own))
    data = Perturbed(images.to(device), labels.to(device), rows.to(device), count, config.channels, wanted.to(device))
    noise = minimise(network, data, settings, generator(site.config.seed, "noise"), threads)
    if own_rows:
        held = torch.split(protected, [shard.count for shard in site.shards])
        parts = torch.split(noise.levels, [int(own.sum()) for own in held])
        files: dict[str, str] = {}
        for shard, part in zip(site.shards, parts, strict=True):
            files |= write_file(site.out, shard.name, part.clone())
    else:
        files = write_file(site.out, EVERY_SHARD, noise.levels)
    found = {"noise_rounds": noise.rounds, "noise_error": noise.error, "networks": [name]}
    write_prepared(site.out, site.made_from, files, found, time.monotonic() - begun)


def _keys(site: Site) -> list[str]:
    """Return the keys of the images to learn from, in order."""
    return [sample.key for shard in site.shards for sample in read_shard(site.clean, shard)]


def _class_rows(site: Site, classes: Tensor) -> tuple[Tensor, int]:
    """Return the row of noise of each training image, as `class_noise` chooses it when a shard is protected, and the number of rows."""
    config = site.config.protect
    assert config.patterns is not None
    seeds = [derive(site.config.seed, config.method, key) for key in (_keys(site) if config.patterns > 1 else ())]
    return class_rows(classes, seeds, config.patterns), len(site.classes) * config.patterns


PREPARATIONS: dict[Preparation, Callable[[Site, Executor], None]] = {
    "class-means": _class_means,
    "own-noise": _noise,
    "class-noise": _noise,
    "pixels": _pixels,
}
