"""One training on Ray Train: data-parallel ranks, a checkpoint per epoch, all of them kept, resumed after any failure."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray.train
import ray.train.torch
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.pool import describe

log = logging.getLogger(__name__)

Task = TypeVar("Task")
Metrics = dict[str, Any]
RETRIES = 5  # starts of the whole group after a dead worker or a storage error; other errors are final
STOP_SECONDS = 20.0  # for the training thread to notice that the cluster is gone
POLL_SECONDS = "0.2"  # how often the controller looks at the ranks; a report waits until the one before it was seen


class TrainingFailed(RuntimeError):
    """The training ended before its last epoch; what it reported is kept."""


@dataclass(frozen=True)
class Worker:
    """What a training loop knows of the group it runs in, and its way to keep what it has."""

    rank: int
    size: int
    progress: Queue

    @property
    def device(self) -> Any:
        """The torch device of this rank."""
        return ray.train.torch.get_device()

    def distribute(self, network: Any) -> Any:
        """The network on this rank's device, its gradients averaged over the ranks."""
        return ray.train.torch.prepare_model(network)

    @contextmanager
    def resumed(self) -> Iterator[Path | None]:
        """A local folder with the files of the last epoch that was kept; None at the beginning."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
        else:
            with checkpoint.as_directory() as folder:
                yield Path(folder)

    def report(self, epoch: int, metrics: Metrics, files: dict[str, bytes]) -> None:
        """Keep an epoch's files as checkpoint `epoch_0000`; all ranks call it, only rank 0's files and metrics count."""
        metrics = {"epoch": epoch, **metrics}
        if self.rank != 0:
            ray.train.report(metrics, checkpoint=None)
            return
        with tempfile.TemporaryDirectory() as folder:
            for name, data in files.items():
                (Path(folder) / name).write_bytes(data)
            # Named by epoch, so that an epoch done twice after a failure replaces itself instead of leaving an orphan.
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=f"epoch_{epoch:04d}")
        self.progress.put(metrics)


def _start(setup: dict[str, Any]) -> None:
    context = ray.train.get_context()
    setup["loop"](setup["task"], Worker(context.get_world_rank(), context.get_world_size(), setup["progress"]))


def train(
    loop: Callable[[Task, Worker], None],
    task: Task,
    *,
    workers: int,
    cpus: int,
    gpu: int,
    filesystem: Any,
    folder: str,
    name: str,
    on_epoch: Callable[[Metrics], None],
) -> list[Metrics]:
    """Run `loop(task, worker)` on every rank until it returns, resuming whatever `folder/name` holds.

    Args:
        loop: module-level; calls `worker.report` once per epoch.
        task: its argument; must survive pickling.
        workers: ranks.
        cpus: CPUs per rank.
        gpu: GPUs per rank, 0 or 1.
        filesystem: a pyarrow filesystem.
        folder: absolute path on it.
        name: checkpoints go to `folder/name/epoch_0000`, ...
        on_epoch: called in this process with each new epoch's metrics, while the training runs.

    Returns:
        One row of metrics per kept epoch, in order, also those of earlier starts.

    Raises:
        TrainingFailed: the loop raised, or the group died too often.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL_SECONDS)
    resources = {"CPU": cpus, **({"GPU": gpu} if gpu else {})}
    # With this process, and not on a machine that may be lost while this process lives.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    progress = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    trainer = ray.train.torch.TorchTrainer(
        _start,
        train_loop_config={"loop": loop, "task": task, "progress": progress},
        scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=bool(gpu), resources_per_worker=resources),
        run_config=ray.train.RunConfig(name=name, storage_path=folder, storage_filesystem=filesystem),
    )
    told: set[int] = set()
    for retries_left in reversed(range(RETRIES + 1)):
        try:
            result = _fit(trainer, progress, on_epoch, told)
            break
        except (TrainingFailedError, ray.exceptions.RayError) as error:
            failures = getattr(error, "worker_failures", {})
            causes = _one_line(failures) or describe(error)
            if not (retries_left and failures and all(map(_may_pass, failures.values()))):
                raise TrainingFailed(f"{name}: {causes}") from error
            log.warning("%s: starting again from the last kept epoch after %s", name, causes)
    progress.shutdown()
    rows = {metrics["epoch"]: metrics for _, metrics in result.best_checkpoints or []}
    return [rows[epoch] for epoch in sorted(rows)]


def _fit(trainer: Any, progress: Queue, on_epoch: Callable[[Metrics], None], told: set[int]) -> Any:
    """Train in a thread of its own, and follow it here: on the main thread Ray would take the handler of Ctrl-C, and keep it.

    `told` holds the epochs that were told before: one done twice after a failure is told once.
    """
    outcome: Future[Any] = Future()

    def fit() -> None:
        try:
            outcome.set_result(trainer.fit())
        except BaseException as error:
            outcome.set_exception(error)
        finally:
            if ray.is_initialized():  # else the main thread has left, and a call would start another cluster
                progress.put(None)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    try:
        while (metrics := progress.get()) is not None:
            if metrics["epoch"] not in told:
                told.add(metrics["epoch"])
                on_epoch(metrics)
    except BaseException:  # interrupted: a thread still inside Ray would abort the process when Python ends
        ray.shutdown()
        thread.join(STOP_SECONDS)
        raise
    return outcome.result()


def _one_line(failures: Mapping[int, BaseException]) -> str:
    """Every different cause once, with the ranks it came from."""
    ranks: dict[str, list[str]] = {}
    for rank, cause in failures.items():
        ranks.setdefault(describe(cause), []).append(str(rank))
    return "; ".join(f"{cause} (rank {', '.join(at)})" for cause, at in ranks.items())


def _may_pass(cause: BaseException) -> bool:
    """Whether another start may help: after a dead process (Ray's own errors), a storage error, or a RuntimeError.

    By the last one torch tells a rank that another has died, which may be known before the death itself is.
    """
    return isinstance(cause, OSError | RuntimeError) or type(cause).__module__.startswith("ray.")
