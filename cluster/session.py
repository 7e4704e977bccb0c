"""The connection to Ray: to the cluster that this process was submitted to, or to one embedded in it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
import time
from contextlib import ExitStack
from urllib.parse import urlsplit

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from cluster.display import doing
from cluster.processes import cpus
from cluster.resources import Resources, divide

log = logging.getLogger(__name__)

JOIN_SECONDS = 30.0  # for a cluster that was named to answer at all
RETRY_SECONDS = 1.0
MACHINES_SECONDS = 900.0  # for an autoscaler to bring machines: a boot, an image of many gigabytes, an installation

# What every process of a job is given, wherever it runs; whoever sets one of these has the last word. Nothing of it is repeated in
# a recipe or a file that describes a cluster.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    # Of glibc, for workers on a CPU: memory freed by one step stays with the process for the next step, instead of being faulted in anew.
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}

_embedded = ExitStack()  # what goes with the embedded cluster: its temporary folder


def connect(workers: int | None = None) -> Resources:
    """Connect once, and return the resources of the cluster.

    Inside a Ray job, or with `RAY_ADDRESS` set, that cluster is used, after waiting for the machines its autoscaler has
    to start; otherwise one is started in this process, never attaching to another that happens to run on this machine.

    Args:
        workers: how many workers to use at a time; by default one per GPU, or one per CPU core without GPUs.

    Raises:
        ValueError: more workers are asked for than the cluster has GPUs, or CPUs if it has no GPU.
        ConnectionError: the cluster cannot be joined, or none be started here.
    """
    joining = os.environ.get("RAY_ADDRESS")
    if not ray.is_initialized():
        missing = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
        os.environ.update(missing)
        handler = signal.getsignal(signal.SIGTERM)
        try:
            if joining:
                log.info("joining the Ray cluster at %s, for up to %.0f s", joining, JOIN_SECONDS)
                _await_answer(joining)
                # Workers do not inherit it from this process; and Ray refuses a setting that `ray job submit` was given already.
                ray.init(runtime_env={"env_vars": missing}, log_to_driver=False, logging_level=logging.WARNING)
            else:
                _start()
        except Exception as error:  # which exceptions Ray raises is not documented
            raise ConnectionError(_advice(error)) from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray puts one of its own in its place
    if joining:
        _wait_for_machines(workers)
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return divide([(int(have.get("CPU", 0)), int(have.get("GPU", 0))) for have in alive], workers)


def _await_answer(address: str) -> None:
    """Wait for a cluster's port to be open. Ray itself would wait for minutes, and print what it tries.

    Raises:
        ConnectionError: nothing answers there in time.
    """
    try:
        place = urlsplit(f"//{address.removeprefix('ray://')}")
        if place.hostname is None or place.port is None:
            return
    except ValueError:  # Ray says what is wrong with it
        return
    end = time.monotonic() + JOIN_SECONDS
    while True:
        try:
            with socket.create_connection((place.hostname, place.port), timeout=max(1.0, end - time.monotonic())):
                return
        except OSError as error:
            if time.monotonic() + RETRY_SECONDS > end:
                raise ConnectionError(f"nothing answers within {JOIN_SECONDS:.0f} s: {(error.strerror or str(error)).lower()}") from error
            time.sleep(RETRY_SECONDS)


def _advice(error: Exception) -> str:
    """Return what failed and what to do, in one line."""
    why = " ".join(str(error).split())
    if address := os.environ.get("RAY_ADDRESS"):
        return f"the Ray cluster at RAY_ADDRESS={address} cannot be joined ({why}): correct it, or unset it to use this machine alone"
    return f"Ray cannot be started on this machine ({why}): free memory, shorten RAY_TMPDIR, or give --executor local"


def _start() -> None:
    # Ray warns at every start that it turns on token authentication, which is what we want of it.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    # A folder of our own, because Ray's /tmp/ray belongs to whoever came first; a short one, because paths of Unix
    # sockets end at 107 characters.
    base = os.environ.get("RAY_TMPDIR", "/tmp")  # noqa: S108  # the folder in it gets an unpredictable name
    folder = _embedded.enter_context(tempfile.TemporaryDirectory(prefix="ray-", dir=base, ignore_cleanup_errors=True))
    with doing("starting Ray on this machine"):
        ray.init(
            address="local", num_cpus=cpus(), include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING, _temp_dir=folder
        )


def _wait_for_machines(workers: int | None) -> None:
    """Make the demand visible to an autoscaler, and wait. `divide` then checks whether enough machines came."""
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


def close() -> None:
    """Leave the cluster; one that was embedded ends with all its processes and files."""
    ray.shutdown()
    _embedded.close()
