"""Connecting to Ray: the cluster we were submitted to, or one embedded in this process."""

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import ray

log = logging.getLogger(__name__)

MOST_CPU_WORKERS = 8  # by default; more DDP ranks on one machine's CPUs cost more in synchronisation than they bring


@dataclass(frozen=True)
class Resources:
    """How work is divided: `workers` at a time, each with so many CPUs and GPUs."""

    workers: int
    cpus_per_worker: int
    gpus_per_worker: int


def connect(workers: int | None = None) -> Resources:
    """Connect once, and say what there is to work with.

    Inside a Ray job, or with `RAY_ADDRESS` set, that cluster is used; otherwise one is started in this process, never
    attaching to another that happens to run on this machine.

    Args:
        workers: how many workers to use at a time; one per GPU, or else one per CPU core, if not given.

    Raises:
        ValueError: more workers are asked for than there are CPUs.
    """
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
        if "RAY_ADDRESS" in os.environ:
            ray.init(log_to_driver=True, logging_level=logging.WARNING)
        else:
            # Short, because Unix socket paths end at 107 characters.
            folder = Path(tempfile.gettempdir()) / "ray"
            ray.init(address="local", include_dashboard=False, logging_level=logging.WARNING, _temp_dir=str(folder))
    return divide(ray.cluster_resources(), workers)


def divide(have: dict[str, float], workers: int | None) -> Resources:
    """Split what the cluster has among the workers: a GPU each where there are any, and an equal share of the CPUs.

    Raises:
        ValueError: more workers are asked for than there are CPUs.
    """
    cpus, gpus = int(have.get("CPU", 0)), int(have.get("GPU", 0))
    if workers is None:
        workers = gpus or max(1, min(cpus, MOST_CPU_WORKERS))
    if cpus and workers > cpus:
        raise ValueError(f"{workers} workers need as many CPUs, but the cluster has {cpus}: lower --workers or add machines")
    return Resources(workers, max(1, cpus // workers), 1 if gpus >= workers else 0)


def close() -> None:
    """Leave the cluster; one that was embedded ends with all its processes."""
    ray.shutdown()
