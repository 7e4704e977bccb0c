"""Error-minimising noise as a preparation: one training against the noise, which an interrupted start leaves to the next."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cluster.deadline import Deadline, TimeIsUp
from cluster.executor import Executor
from cluster.progress import Epochs
from cluster.work import Report
from pipeline.config.schema import RunConfig
from pipeline.config.seeds import derive, generator
from pipeline.protection.choice import chosen_keys
from pipeline.protection.preparation_files import write_file, write_prepared
from pipeline.protection.site import Site
from pipeline.shards.shard import read_shard
from pipeline.shards.tensors import Loading, load_seen
from pipeline.storage.layout import EVERY_SHARD
from pipeline.training.initial import new_network
from pipeline.training.states import StateFile
from sep.execution import use_cpu
from sep.methods.error_minimising import class_rows
from sep.methods.noise_training import NoiseConfig, Perturbed, minimise
from sep.models import Network
from sep.objective import choose_targets
from sep.views.registry import is_plain

log = logging.getLogger(__name__)

NAME = "noise"  # of the training, its progress and its state
OWN_NOISE, OWN_MOMENTUM = 4, 8  # bytes in memory for each value of an image beside its own: what is in use, and its copy for a state
WEAK = 10.0  # percent: the error at which the code of the paper ends noise of a class, for methods that take all their rounds


@dataclass(frozen=True)
class NoiseTask:
    """The inputs of the training.

    Attributes:
        site: where the release is prepared.
        threads: micro-batches at a time on a CPU.
        deadline: after which no further round is begun.
    """

    site: Site
    threads: int
    deadline: Deadline


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


def make_noise(site: Site, executor: Executor) -> None:
    """Make error-minimising noise in one task that holds the training set in memory.

    Raises:
        ValueError: the training set is larger than the memory limit.
    """
    images = sum(shard.count for shard in site.shards)
    side, counts = site.config.input_size, site.pack.counts
    check_noise_memory(site.config, images, side or counts["height"], side or counts["width"])
    cpus = 1 if site.resources.gpu else min(site.resources.cpus_for(1), site.resources.tasks)
    log.info("protect: training a %s against its noise", site.config.surrogate.trained[0])
    with Epochs(NAME, {NAME: site.config.protect.rounds}, unit="round") as progress:
        task = NoiseTask(site, cpus, executor.deadline)
        told = partial(_reached, progress)
        executor.sweep(train_noise, {NAME: task}, what=NAME, at_once=1, cpus=cpus, gpu=site.resources.gpu, on_result=told)


def _reached(progress: Epochs, name: str, result: Mapping[str, Any]) -> None:
    progress.reached(name, result["epoch"] + 1, f"{result['noise_error']:.1f} % of the images wrong")


def train_noise(task: NoiseTask, report: Report) -> None:
    """Train a network against its noise and write the noise, one file a shard or one for all classes. This is the body of a trial.

    An interrupted start leaves its state. The next start resumes from it and reaches the same noise.

    Raises:
        ValueError: training diverged.
        TimeIsUp: the deadline has passed with rounds left for the next start.
    """
    begun = time.monotonic()
    use_cpu(1)  # another number could round sums differently; `threads` compute apart from each other
    torch.backends.cudnn.deterministic = True
    site, config = task.site, task.site.config.protect
    network, data, protected = _begin(site)
    settings = NoiseConfig(
        training=site.config.surrogate,
        steps=config.noise_steps,
        rounds=config.rounds,
        enough=None if config.noise_rounds else config.kind.enough,
        views=site.config.views,
        **{name: getattr(config, name) for name in ("eps_levels", "momentum", "normalised", "precision", "kernels")},
    )
    file = StateFile(site.out, NAME, site.made_from)
    state = file.read()
    before = state["seconds"] if state else 0.0
    for done in minimise(network, data, settings, generator(site.config.seed, "noise"), task.threads, state):
        report({"epoch": done.number - 1, "noise_error": done.error})
        if not done.done and ((late := task.deadline.passed()) or file.due):
            file.write({**done.state(), "seconds": before + time.monotonic() - begun})
            if late:
                raise TimeIsUp
    levels = data.levels
    if config.kind.preparation == "own-noise":
        held = torch.split(protected, [shard.count for shard in site.shards])
        parts = torch.split(levels, [int(own.sum()) for own in held])
        files: dict[str, str] = {}
        for shard, part in zip(site.shards, parts, strict=True):
            files |= write_file(site.out, shard.name, part.clone())
    else:
        files = write_file(site.out, EVERY_SHARD, levels)
    found = {"noise_rounds": done.number, "noise_error": done.error, "networks": list(site.config.surrogate.trained)}
    file.remove()
    write_prepared(site.out, site.made_from, files, found, before + time.monotonic() - begun)


def _begin(site: Site) -> tuple[Network, Perturbed, Tensor]:
    """Return a fresh network, the images without noise, and which of them are to have some, `(B,)`."""
    config, among = site.config.protect, torch.tensor(site.classes)
    device = torch.device("cuda" if site.resources.gpu else "cpu")
    images, labels = load_seen(site.clean, site.shards, Loading(input_size=site.config.input_size))
    protected = torch.isin(labels, among)
    if site.chosen:
        keys = chosen_keys(site.out, site.chosen)
        protected &= torch.tensor([key in keys for key in _keys(site)])
    if config.kind.preparation == "own-noise":
        numbers, count = protected.cumsum(0) - 1, int(protected.sum())
    else:
        numbers, count = _class_rows(site, torch.searchsorted(among, labels))
    rows = torch.where(protected, numbers, -1)
    (name,), initial = site.config.surrogate.trained, site.config.surrogate.pretrained
    torch.manual_seed(derive(site.config.seed, "noise"))
    network = new_network(name, initial, site.pack, site.config.input_size).to(device).to(memory_format=torch.channels_last)
    wanted = labels.clone()
    if config.kind.targets:
        drawn, own = generator(site.config.seed, "targets"), labels[protected]
        wanted[protected] = choose_targets(config.targets, own, site.classes, drawn, torch.zeros_like(own))
    assert config.channels is not None
    data = Perturbed(images.to(device), labels.to(device), rows.to(device), count, config.channels, wanted.to(device))
    return network, data, protected


def _keys(site: Site) -> list[str]:
    """Return the keys of the images to learn from, in order."""
    return [sample.key for shard in site.shards for sample in read_shard(site.clean, shard)]


def _class_rows(site: Site, classes: Tensor) -> tuple[Tensor, int]:
    """Return the row of noise of each training image, as `class_noise` chooses it when a shard is protected, and the number of rows."""
    config = site.config.protect
    assert config.patterns is not None
    seeds = [derive(site.config.seed, config.method, key) for key in (_keys(site) if config.patterns > 1 else ())]
    return class_rows(classes, seeds, config.patterns), len(site.classes) * config.patterns


def say_unfinished(config: RunConfig, found: Mapping[str, Any]) -> None:
    """Warn of error-minimising noise that ran out of rounds, as it does in small batches, unless so many were asked for.

    Through views the network gets many images wrong however well the noise protects.
    """
    error, kind = found.get("noise_error", 0.0), config.protect.kind
    aim = kind.enough or WEAK
    if error > aim and not kind.targets and config.protect.noise_rounds is None and is_plain(config.views):
        log.warning(
            "noise: after %d rounds the network still gets %.1f %% of the training images wrong, where %g %% is the aim: the protection "
            "may be weak; --protect.noise-rounds %d makes it stronger",
            *(found["noise_rounds"], error, aim, 4 * found["noise_rounds"]),
        )
