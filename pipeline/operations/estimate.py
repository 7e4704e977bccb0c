"""The estimate of a run: hours, machine hours and storage, from the amount of work and a worker's speed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from cluster.deadline import NEVER
from cluster.display import duration
from cluster.executor import Executor, open_executor
from cluster.resources import Resources
from cluster.work import Capacity, Work
from pipeline.config.class_selection import portion, protected_classes
from pipeline.config.plan_config import PlanConfig
from pipeline.config.released_splits import released_splits
from pipeline.config.schema import SPLITS, RunConfig, to_tree
from pipeline.config.sight import looked_through
from pipeline.operations.probe import LOOKED_AT, Images, Speed, fresh, look, measure, scaled
from pipeline.operations.reference_gpu import NAME, NETWORK, SIDE, reference_images, reference_speed
from pipeline.sources.dataset import Dataset
from pipeline.sources.scan import scan
from sep.countermeasures import registry as countermeasures
from sep.methods.noise_training import TRAIN_STEPS

# Read off one run of `cifar10-small` on two CPU cores. Its stages took 12, 158, 273, 258 and 2 seconds.
STAGE_SECONDS = 5.0  # to start workers that import torch
EPOCH_SECONDS = 2.0  # to write a checkpoint and have it acknowledged
REPORT_SECONDS = 3.0
MOST_CPU_RANKS = 8
PROBE_SECONDS = 10.0
SIZES = (8, 64)  # clusters of so many workers stand beside the present one
GPU_CPUS = 8  # of a machine with one GPU, where this cluster has none to look at


@dataclass(frozen=True)
class Workload:
    """The amount of work in a run.

    Attributes:
        train: training images.
        test: test images.
        released: images of the release, those for testing among them if they are published too.
        protected: released images that are protected.
        classes: K.
        parameters: weights of each surrogate network.
    """

    train: int
    test: int
    released: int
    protected: int
    classes: int
    parameters: tuple[int, ...]

    def gradients(self, config: RunConfig) -> int:
        """Return the number of forward and backward passes to the pixels."""
        return self.protected * config.protect.gradients_per_image(config.protect.members(len(config.surrogate.networks)))


@dataclass(frozen=True)
class Workers:
    """A number of workers, each a GPU with its CPUs or a single CPU core."""

    count: int
    gpu: bool
    cpus_each: float


def stage_seconds(config: RunConfig, work: Workload, images: Images, speed: Speed, workers: Workers) -> dict[str, float]:
    """Return the seconds of each stage."""
    packed, cpus = work.train + work.test, workers.count * workers.cpus_each
    return {
        "pack": STAGE_SECONDS + packed / (images.per_second * cpus),
        "surrogate": STAGE_SECONDS + sum(_training(name, config, work, speed, workers) for name in config.surrogate.networks),
        "protect": STAGE_SECONDS + _crafting(config, work, images, speed, workers),
        "victim": STAGE_SECONDS + _victims(config, work, speed, workers) if "victim" in config.stages else 0.0,
        "report": REPORT_SECONDS,
    }


def _training(name: str, config: RunConfig, work: Workload, speed: Speed, workers: Workers) -> float:
    ranks = workers.count if workers.gpu else min(workers.count, MOST_CPU_RANKS)
    each = max(1, config.surrogate.batch_size // ranks)
    steps = work.train // (each * ranks)
    return config.surrogate.epochs * (EPOCH_SECONDS + steps * _cost(config) * speed.training[name].seconds(each))


def _cost(config: RunConfig) -> float:
    """Return the cost of a surrogate's step beside that of its architecture, whose place a pretrained network of a library takes."""
    own = config.surrogate.trained == config.surrogate.networks
    return 1.0 if own else countermeasures.plan("pretrained").cost


def _crafting(config: RunConfig, work: Workload, images: Images, speed: Speed, workers: Workers) -> float:
    networks = config.surrogate.networks
    rate = len(networks) / sum(_cost(config) / speed.gradients[name] for name in networks)  # the same number of checkpoints of each
    members = config.protect.members(len(networks))
    passes = work.train * members * len(set(config.views)) / 2 if config.protect.aligns_features else 0  # of the class means: forward alone
    coding = work.released / (images.released_per_second * workers.cpus_each)
    if config.protect.kind.noise_rounds:
        return _noise(config, work, rate, speed, workers) + coding / workers.count
    computing = (work.gradients(config) + passes) / rate
    # On a GPU's machine decoding and encoding are done beside the GPU's work.
    return (max(computing, coding) if workers.gpu else computing + coding) / workers.count


def _noise(config: RunConfig, work: Workload, rate: float, speed: Speed, workers: Workers) -> float:
    """Return the seconds of training against the noise: one worker does it, with the others' cores for noise of single images."""
    (name,) = config.surrogate.networks
    step = _cost(config) * speed.training[name].seconds(config.surrogate.batch_size)
    look = work.protected / 2 / rate  # whether images are still classified wrongly: forward alone
    several = config.protect.kind.preparation == "own-noise" and not workers.gpu
    return config.protect.rounds * (TRAIN_STEPS * step + look) + work.gradients(config) / rate / (workers.count if several else 1)


def _victims(config: RunConfig, work: Workload, speed: Speed, workers: Workers) -> float:
    victim, each = config.victim, []
    kinds: tuple[countermeasures.Data, ...] = ("clean", "protected")
    # Trials that train alike count once.
    trained = {countermeasures.plan(name).trained_as(data) for name, data in product(victim.countermeasures, kinds)}
    for name, (countermeasure, _) in product(victim.networks, sorted(trained)):
        plan = countermeasures.plan(countermeasure)
        training = plan.cost * (work.train // victim.batch_size) * speed.training[name].seconds(victim.batch_size)
        each += len(victim.seeds) * [plan.training(victim).epochs * (training + work.test / speed.evaluation[name])]
    return max(max(each), sum(each) / workers.count)  # a bound that no order of them can beat


def storage_bytes(config: RunConfig, work: Workload, images: Images) -> dict[str, float]:
    """Return the bytes that each stage leaves: shards, and the weights and the optimiser's state of every epoch."""
    others = work.released - work.protected
    return {
        "pack": (work.train + work.test) * images.clean_bytes,
        "surrogate": 8.0 * config.surrogate.epochs * sum(work.parameters),
        "protect": work.protected * images.protected_bytes + others * images.clean_bytes,
    }


def human_bytes(size: float) -> str:
    """Return a size such as `12 MB`, `3.4 GB`."""
    power = min(4, int(math.log(max(size, 1), 1000)))
    return f"{size / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def text(
    config: RunConfig, work: Workload, images: Images, speed: Speed, clusters: Sequence[Workers], price_per_worker_hour: float | None
) -> str:
    """Return the plan for people: the work, the storage, and for each cluster the time, machine hours and price of each stage."""
    unit = "GPU" if clusters[0].gpu else "CPU core"
    stored = storage_bytes(config, work, images)
    side = ("seen as " if config.input_size else "") + "x".join(map(str, images.pixels.shape[2:]))
    rates = ", ".join(f"{rate:,.0f} gradients/s with {name}" for name, rate in speed.gradients.items())
    lines = [
        f"{work.train:,} training and {work.test:,} test images of {work.classes} classes, {side}; {work.protected:,} to protect",
        f"{work.gradients(config):,} gradients; one {unit}: {rates}",
        f"storage: {human_bytes(sum(stored[stage] for stage in config.needed_stages if stage in stored))}"
        f" ({', '.join(f'{stage} {human_bytes(size)}' for stage, size in stored.items() if stage in config.needed_stages)})",
    ]
    for workers in clusters:
        head = f"{workers.count} {unit}{'s' if workers.count > 1 else ''}"
        lines += table(head, config, stage_seconds(config, work, images, speed, workers), workers, price_per_worker_hour)
    return "\n".join(lines)


def table(head: str, config: RunConfig, seconds: dict[str, float], workers: Workers, price_per_worker_hour: float | None) -> list[str]:
    """Return the lines for one cluster: the time, machine hours and price of each stage."""
    rows: dict[str, float] = {stage: seconds[stage] for stage in config.needed_stages}
    rows["all"] = sum(rows.values())
    unit = "GPU" if workers.gpu else "CPU core"
    lines = ["", f"{head:<14}{'time':>10}{f'{unit}-hours':>16}" + (f"{'price':>12}" if price_per_worker_hour else "")]
    for stage, each in rows.items():
        hours = each / 3600 * workers.count
        price = f"{hours * price_per_worker_hour:>12,.2f}" if price_per_worker_hour else ""
        lines.append(f"  {stage:<12}{duration(each):>10}{hours:>16.3g}{price}")
    return lines


def plan(config: PlanConfig) -> str:
    """Return the plan as a text.

    Raises:
        ValueError: the source cannot be packed as it is, or a setting does not fit it.
        WorkFailed: the probe failed.
    """
    config, dataset = looked_through(config), scan(config)
    executor = open_executor(config.executor, NEVER)
    try:
        resources = executor.connect(config.workers)
        images = look(dataset.split("train")[:LOOKED_AT], dataset.reader, config)
        if config.gradients_per_second:
            speed, gpu = scaled(config.gradients_per_second, images.pixels, config, len(dataset.classes)), True
        else:
            speed, gpu = _probe(config, images, len(dataset.classes), executor, resources), bool(resources.gpu)
    finally:
        executor.close()
    cpus_each = resources.cpus / resources.tasks if resources.gpu else GPU_CPUS if gpu else 1
    present = Workers(1 if gpu and not resources.gpu else resources.tasks, gpu, cpus_each)
    clusters = [present, *(Workers(count, gpu, cpus_each) for count in SIZES)]
    work = _count(config, dataset, images)
    return text(config, work, images, speed, clusters, config.price_per_gpu_hour) + ("" if gpu else _one_gpu(config, work, images))


def _one_gpu(config: PlanConfig, work: Workload, images: Images) -> str:
    """Return what the plan says, where this cluster has no GPU, of one that was measured."""
    one = Workers(1, True, GPU_CPUS)
    there = reference_images(images)
    seconds = stage_seconds(config, work, there, reference_speed(config, there, work.classes), one)
    lines = table("1 GPU", config, seconds, one, config.price_per_gpu_hour)
    note = f"an {NAME}, measured with {NETWORK} at {SIDE} pixels and scaled by the operations of these networks; small ones do not fill it"
    return "\n".join(["", *lines, f"  ({note})"])


def _count(config: PlanConfig, dataset: Dataset, images: Images) -> Workload:
    splits = released_splits(config.protect.splits, {"pack": to_tree(config.pack)})
    labels = Counter(entry.label for split in splits for entry in dataset.split(split))
    chosen = protected_classes(config, dataset.classes)
    sizes = [sum(p.numel() for p in fresh(name, images.pixels, len(dataset.classes)).parameters()) for name in config.surrogate.networks]
    protected = sum(portion(config.protect.share, labels[label]) for label in chosen)
    train, test = (len(dataset.split(split)) for split in SPLITS)
    return Workload(train, test, labels.total(), protected, len(dataset.classes), tuple(sizes))


def _probe(config: PlanConfig, images: Images, num_classes: int, executor: Executor, resources: Resources) -> Speed:
    """The slowest of all workers, which compute at the same time."""
    arguments = (images.pixels, config, num_classes, bool(resources.gpu), PROBE_SECONDS)
    pieces = [Work(f"worker {n}", arguments) for n in range(resources.tasks)]
    capacity = Capacity(resources.tasks, gpus=resources.gpu)
    speeds = [speed for _, speed in executor.run_all(measure, pieces, what="probe", unit="workers", capacity=capacity)]
    return min(speeds, key=lambda speed: sum(speed.gradients.values()))
