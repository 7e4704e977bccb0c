"""One training on Ray Train: data-parallel ranks, every epoch saved, resumed after any failure."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import ray.train
import ray.train.collective
import ray.train.torch
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.deadline import NEVER, Deadline, TimeIsUp
from cluster.epochs import Metrics, Storage, Worker, kept
from cluster.work import TRAINING_RETRIES, TrainingFailed, describe

log = logging.getLogger(__name__)

Task = TypeVar("Task")
STOP_SECONDS = 20.0  # for the training thread to notice that the cluster is gone
POLL_SECONDS = "0.2"  # how often the controller looks at the ranks


@dataclass(frozen=True)
class RayWorker(Worker):
    """A rank on Ray Train."""

    @property
    def device(self) -> Any:
        """The torch device of this rank."""
        return ray.train.torch.get_device()

    def distribute(self, network: Any) -> Any:
        """Return the network on this rank's device, its gradients averaged over the ranks."""
        return ray.train.torch.prepare_model(network)

    def out_of_time(self) -> bool:
        """Return what rank 0 finds, so that all ranks stop after the same epoch."""
        if self.deadline == NEVER:
            return False
        return bool(ray.train.collective.broadcast_from_rank_zero(self.deadline.passed()))


def _start(setup: dict[str, Any]) -> None:
    context = ray.train.get_context()
    worker = RayWorker(context.get_world_rank(), context.get_world_size(), setup["folder"], setup["progress"].put, setup["deadline"])
    setup["loop"](setup["task"], worker)


def train(
    loop: Callable[[Task, Worker], None],
    task: Task,
    *,
    what: str,
    folder: Storage,
    workers: int,
    cpus: int,
    gpu: int,
    on_epoch: Callable[[Metrics], None],
    deadline: Deadline = NEVER,
) -> list[Metrics]:
    """Run `loop(task, worker)` on every rank until it returns: see `Executor.train`."""
    deadline.check()
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", POLL_SECONDS)
    resources = {"CPU": cpus, **({"GPU": gpu} if gpu else {})}
    # With this process, and not on a machine that may be lost while this process lives.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    progress = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    parent, _, name = folder.path.rstrip("/").rpartition("/")
    trainer = ray.train.torch.TorchTrainer(
        _start,
        train_loop_config={"loop": loop, "task": task, "folder": folder, "progress": progress, "deadline": deadline},
        scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=bool(gpu), resources_per_worker=resources),
        run_config=ray.train.RunConfig(name=name, storage_path=parent, storage_filesystem=folder.filesystem),
    )
    told: set[int] = set()
    for retries_left in reversed(range(TRAINING_RETRIES + 1)):
        try:
            _fit(trainer, progress, on_epoch, told)
            break
        except (TrainingFailedError, ray.exceptions.RayError) as error:
            failures = getattr(error, "worker_failures", {})
            if any(isinstance(failure, TimeIsUp) for failure in failures.values()):
                raise TimeIsUp from error
            causes = _one_line(failures) or describe(error)
            if not (retries_left and failures and all(map(_may_pass, failures.values()))):
                raise TrainingFailed(f"{what}: {causes}") from error
            log.warning("%s: starting again from the last saved epoch after %s", what, causes)
    progress.shutdown()
    return kept(folder)


def _fit(trainer: Any, progress: Queue, on_epoch: Callable[[Metrics], None], told: set[int]) -> None:
    """Train in a separate thread, and follow it here: on the main thread Ray would replace the handler of Ctrl-C for good.

    `told` holds the epochs reported so far: one that is repeated after a failure is reported once.
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
    outcome.result()


def _one_line(failures: Mapping[int, BaseException]) -> str:
    """Return every different cause once, with its ranks."""
    ranks: dict[str, list[str]] = {}
    for rank, cause in failures.items():
        ranks.setdefault(describe(cause), []).append(str(rank))
    return "; ".join(f"{cause} (rank {', '.join(at)})" for cause, at in ranks.items())


def _may_pass(cause: BaseException) -> bool:
    """Return whether another start may help: after a dead process (Ray's own errors), a storage error, or a RuntimeError.

    By the last one torch tells a rank that another has died, which may be known before the death itself is.
    """
    return isinstance(cause, OSError | RuntimeError) or type(cause).__module__.startswith("ray.")
