"""What a run will take, before it is started: `python pipeline/plan.py --preset imagenet-subset --data SOURCE`.

Takes every setting of run.py. Images are counted, some of them decoded, and this cluster is made to compute for ten seconds.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Sequence

from pydantic.dataclasses import dataclass

from cluster import session
from cluster.pool import Room, Work, WorkFailed, run_all
from pipeline.config.class_selection import protected_classes
from pipeline.config.command_line import parse_as
from pipeline.config.schema import STRICT, RunConfig
from pipeline.estimate import Workers, Workload, text
from pipeline.probe import LOOKED_AT, Images, Speed, fresh, look, measure, scaled
from pipeline.sources.dataset import Dataset
from pipeline.sources.scan import scan

PROBE_SECONDS = 10.0
SIZES = (8, 64)  # clusters of so many workers stand beside the present one
GPU_CPUS = 8  # of a machine with one GPU, where this cluster has none to look at


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PlanConfig(RunConfig):
    """Estimate time, machines, storage and money of a run, without starting it."""

    gradients_per_second: float | None = None
    """of one GPU and the (first) surrogate network, instead of measuring this cluster"""
    price_per_gpu_hour: float | None = None
    """in any currency; of a worker, where this cluster has no GPU and none is described"""

    def __post_init__(self) -> None:
        """Refuse what is no rate or price, and more than one run.

        Raises:
            ValueError: a number is out of range, or a sweep is asked for.
        """
        super().__post_init__()
        if self.sweep:
            raise ValueError("a plan is of one run: give the values of a point in the place of --sweep")
        for name in ("gradients_per_second", "price_per_gpu_hour"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name.replace('_', '-')} must be above 0, got {value}")


def plan(config: PlanConfig) -> str:
    """The plan as a text.

    Raises:
        ValueError: the source cannot be packed as it is, or a setting does not fit it.
        WorkFailed: the probe failed.
    """
    dataset = scan(config)
    resources = session.connect(config.workers)
    try:
        images = look(dataset.split("train")[:LOOKED_AT], dataset.reader, config)
        if config.gradients_per_second:
            speed, gpu = scaled(config.gradients_per_second, images.pixels, config, len(dataset.classes)), True
        else:
            speed, gpu = _probe(config, images, len(dataset.classes), resources), bool(resources.gpu)
    finally:
        session.close()
    cpus_each = resources.cpus / resources.tasks if resources.gpu else GPU_CPUS if gpu else 1
    present = [] if gpu and not resources.gpu else [Workers(resources.tasks, gpu, cpus_each)]
    clusters = [*present, *(Workers(count, gpu, cpus_each) for count in SIZES)]
    return text(config, _count(config, dataset, images), images, speed, clusters, config.price_per_gpu_hour)


def _count(config: PlanConfig, dataset: Dataset, images: Images) -> Workload:
    labels = Counter(entry.label for entry in dataset.split("train"))
    chosen = protected_classes(config, dataset.classes)
    sizes = [sum(p.numel() for p in fresh(name, images.pixels, len(dataset.classes)).parameters()) for name in config.surrogate.networks]
    protected = sum(labels[label] for label in chosen)
    return Workload(labels.total(), len(dataset.split("test")), protected, len(dataset.classes), tuple(sizes))


def _probe(config: PlanConfig, images: Images, num_classes: int, resources: session.Resources) -> Speed:
    """The slowest of all workers, which compute at the same time."""
    arguments = (images.pixels, config, num_classes, bool(resources.gpu), PROBE_SECONDS)
    pieces = [Work(f"worker {n}", arguments) for n in range(resources.tasks)]
    speeds = [speed for _, speed in run_all(measure, pieces, what="probe", unit="workers", room=Room(resources.tasks, gpus=resources.gpu))]
    return min(speeds, key=lambda speed: sum(speed.gradients.values()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 and the plan, 1 and what went wrong, or 2 for wrong usage."""
    config = parse_as(arguments, PlanConfig, "plan.py")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    try:
        print(plan(config))
    except (ValueError, OSError, WorkFailed) as error:
        print(f"plan.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
