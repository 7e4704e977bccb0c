"""Connecting to Ray: the cluster we were submitted to, or one embedded in this process."""

from __future__ import annotations

import logging
import os
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass

import ray
from ray.util.placement_group import placement_group, remove_placement_group

log = logging.getLogger(__name__)

MOST_CPU_WORKERS = 8  # by default; more DDP ranks on one machine's CPUs cost more in synchronisation than they bring
MACHINES_SECONDS = 900.0  # for an autoscaler to bring machines: a boot, an image of many gigabytes, an installation

_embedded = ExitStack()  # what goes with the embedded cluster: its temporary folder


@dataclass(frozen=True)
class Resources:
    """How work is divided.

    Attributes:
        workers: ranks of one distributed training.
        cpus_per_worker: threads of each rank.
        tasks: independent tasks at a time: one per GPU, or, without GPUs, one single-threaded task per CPU.
        gpu: GPUs that a rank or a task holds, 0 or 1.
        cpus: of the whole cluster.
    """

    workers: int
    cpus_per_worker: int
    tasks: int
    gpu: int
    cpus: int

    def cpus_for(self, at_once: int) -> int:
        """CPUs of each of so many equal tasks."""
        return max(1, self.cpus // at_once)


def connect(workers: int | None = None) -> Resources:
    """Connect once, and say what there is to work with.

    Inside a Ray job, or with `RAY_ADDRESS` set, that cluster is used, after waiting for the machines its autoscaler has
    to start; otherwise one is started in this process, never attaching to another that happens to run on this machine.

    Args:
        workers: how many workers to use at a time; as many as there are GPUs, or else CPU cores, if not given.

    Raises:
        ValueError: more workers are asked for than there are CPUs, or than GPUs where there are any.
    """
    joining = bool(os.environ.get("RAY_ADDRESS"))
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
        if joining:
            ray.init(log_to_driver=False, logging_level=logging.WARNING)
        else:
            _start()
    if joining:
        _wait_for_machines(workers)
    return divide(ray.cluster_resources(), workers)


def _start() -> None:
    # Ray warns at every start that it turns on token authentication, which is what we want of it.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    # A folder of our own, because Ray's /tmp/ray belongs to whoever came first; a short one, because paths of Unix
    # sockets end at 107 characters.
    base = os.environ.get("RAY_TMPDIR", "/tmp")  # noqa: S108  # the folder in it gets an unpredictable name
    folder = _embedded.enter_context(tempfile.TemporaryDirectory(prefix="ray-", dir=base, ignore_cleanup_errors=True))
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING, _temp_dir=folder)


def _wait_for_machines(workers: int | None) -> None:
    """Let an autoscaler see what is needed; whether enough came is for `divide` to say."""
    if not ray.cluster_resources().get("CPU"):  # only a head that does no work
        _wait_for("CPU", 1)
    have = ray.cluster_resources()
    kind = "GPU" if have.get("GPU") else "CPU"
    if workers and workers > have.get(kind, 0):
        _wait_for(kind, workers)


def _wait_for(kind: str, count: int) -> None:
    log.info("waiting up to %.0f minutes for machines: %d %s needed", MACHINES_SECONDS / 60, count, kind)
    group = placement_group([{kind: 1}] * count)  # a demand that, unlike request_resources, ends with this process
    group.wait(MACHINES_SECONDS)
    remove_placement_group(group)


def divide(have: dict[str, float], workers: int | None) -> Resources:
    """Split what the cluster has among the workers: a GPU each where there are any, and an equal share of the CPUs.

    Raises:
        ValueError: more workers are asked for than there are CPUs, or than GPUs where there are any.
    """
    cpus, gpus = max(1, int(have.get("CPU", 0))), int(have.get("GPU", 0))
    kind, most = ("GPU", gpus) if gpus else ("CPU", cpus)
    if workers is not None and workers > most:
        raise ValueError(f"{workers} workers need one {kind} each, but the cluster has {most}: lower --workers or add machines")
    ranks = workers or (gpus or min(cpus, MOST_CPU_WORKERS))
    return Resources(ranks, max(1, cpus // ranks), workers or most, int(gpus > 0), cpus)


def close() -> None:
    """Leave the cluster; one that was embedded ends with all its processes and files."""
    ray.shutdown()
    _embedded.close()
