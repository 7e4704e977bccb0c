"""Connecting to Ray: the cluster we were submitted to, or one embedded in this process."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import ray
from ray.util.placement_group import placement_group, remove_placement_group

log = logging.getLogger(__name__)

MOST_CPU_WORKERS = 8  # by default; more DDP ranks on one machine's CPUs cost more in synchronisation than they bring
MACHINES_SECONDS = 900.0  # for an autoscaler to bring machines: a boot, an image of many gigabytes, an installation

# What every process of a job is given, wherever it runs; whoever sets one of these has the last word. Nothing of it is repeated in
# a recipe or a file that describes a cluster.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    # Of glibc, for workers on a CPU: memory that one step frees is kept for the next, instead of being given back and faulted in anew.
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}

_embedded = ExitStack()  # what goes with the embedded cluster: its temporary folder


@dataclass(frozen=True)
class Resources:
    """How work is divided.

    Attributes:
        nodes: CPUs and GPUs of each machine.
        workers: ranks of one distributed training.
        tasks: independent tasks at a time: one per GPU, or, without GPUs, one single-threaded task per CPU.
    """

    nodes: tuple[tuple[int, int], ...]
    workers: int
    tasks: int

    @property
    def cpus(self) -> int:
        """CPUs of all machines together."""
        return sum(cpus for cpus, _ in self.nodes)

    @property
    def gpu(self) -> int:
        """GPUs that a rank or a task holds, 0 or 1."""
        return int(any(gpus for _, gpus in self.nodes))

    def cpus_for(self, at_once: int, per_gpu: int = 1) -> int:
        """CPUs of each of so many equal tasks or ranks, none of which can stretch over two machines; on a GPU, so many share it."""

        def room(each: int) -> int:
            return sum(min(cpus // each, gpus * per_gpu) if self.gpu else cpus // each for cpus, gpus in self.nodes)

        return max((each for each in range(1, self.cpus + 1) if room(each) >= at_once), default=1)


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
        missing = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
        os.environ.update(missing)
        handler = signal.getsignal(signal.SIGTERM)
        if joining:
            # Workers do not inherit it from this process; and Ray refuses to be told twice what `ray job submit` was told already.
            ray.init(runtime_env={"env_vars": missing}, log_to_driver=False, logging_level=logging.WARNING)
        else:
            _start()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray puts one of its own in its place
    if joining:
        _wait_for_machines(workers)
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return divide([(int(have.get("CPU", 0)), int(have.get("GPU", 0))) for have in alive], workers)


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


def divide(nodes: Sequence[tuple[int, int]], workers: int | None) -> Resources:
    """How many ranks and tasks machines with so many (CPUs, GPUs) each can hold: one a GPU where there are any, else one a CPU.

    Raises:
        ValueError: more workers are asked for than that.
    """
    gpu = any(gpus for _, gpus in nodes)
    most = max(1, sum(min(cpus, gpus) if gpu else cpus for cpus, gpus in nodes))  # a GPU is of no use without a CPU
    if workers is not None and workers > most:
        kind = "GPU" if gpu else "CPU"
        raise ValueError(f"{workers} workers need one {kind} each, but the cluster has {most}: lower --workers or add machines")
    return Resources(tuple(nodes), workers or (most if gpu else min(most, MOST_CPU_WORKERS)), workers or most)


def close() -> None:
    """Leave the cluster; one that was embedded ends with all its processes and files."""
    ray.shutdown()
    _embedded.close()
