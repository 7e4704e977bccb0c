"""Work in this process, one piece after the other, on its GPU if it has one: the calls of `Executor` without Ray."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from cluster.deadline import NEVER, Deadline, TimeIsUp
from cluster.epochs import Metrics, Storage, Worker, kept
from cluster.progress import Progress
from cluster.resources import Resources, divide
from cluster.work import (
    EVERYTHING,
    PIECE_RETRIES,
    TRAINING_RETRIES,
    TRIAL_RETRIES,
    Capacity,
    Report,
    Result,
    TrainingFailed,
    Work,
    WorkFailed,
    describe,
)

log = logging.getLogger(__name__)

Task = TypeVar("Task")


@dataclass(frozen=True)
class LocalWorker(Worker):
    """The only rank of a training in this process."""

    gpu: bool

    @property
    def device(self) -> Any:
        """The torch device of this process."""
        import torch  # `--help` need not wait for it

        return torch.device("cuda" if self.gpu else "cpu")

    def distribute(self, network: Any) -> Any:
        """Return the network on that device."""
        return network.to(self.device)


@dataclass(frozen=True)
class LocalExecutor:
    """The five calls of `Executor` in this process; see there for the arguments. Pieces run one at a time, whatever the capacity says."""

    deadline: Deadline = NEVER

    def connect(self, workers: int | None = None) -> Resources:
        """Return the CPUs and the GPU of this process, for one worker.

        Raises:
            ValueError: more than one worker is asked for.
        """
        import torch

        if workers is not None and workers > 1:
            raise ValueError(f"{workers} workers are asked for, but --executor local is one: leave out --workers, or use --executor ray")
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return divide([(cpus or 1, int(torch.cuda.is_available()))], 1)

    def run_all(
        self, function: Callable[..., Result], pieces: Sequence[Work], *, what: str, unit: str = "images", capacity: Capacity = EVERYTHING
    ) -> Iterator[tuple[str, Result]]:
        """Run pieces in their order."""
        progress = Progress(what, unit, sum(piece.units for piece in pieces))
        causes: dict[str, str] = {}
        for piece in pieces:
            self.deadline.check()
            try:
                result = _persistently(partial(function, *piece.arguments), PIECE_RETRIES, f"{what}: {piece.name} is done again")
            except TimeIsUp:
                raise
            except Exception as error:
                causes[piece.name] = progress.failed(piece.name, piece.units, error)
                continue
            progress.finished(piece.units)
            yield piece.name, result
        if causes:
            raise WorkFailed(what, causes)

    def combine_all(
        self,
        function: Callable[..., Result],
        combine: Callable[..., Result],
        pieces: Sequence[Work],
        *,
        what: str,
        unit: str = "images",
        capacity: Capacity = EVERYTHING,
    ) -> tuple[Result | None, WorkFailed | None]:
        """Run pieces in their order, and combine each result with the total so far."""
        total: list[Result] = []
        failure = None
        try:
            for _, result in self.run_all(function, pieces, what=what, unit=unit, capacity=capacity):
                total = [combine(*total, result)] if total else [result]
        except WorkFailed as failed:
            failure = failed
        except TimeIsUp:
            raise
        except Exception as error:  # the pieces themselves raise WorkFailed
            raise WorkFailed(what, {"combining": describe(error)}) from error
        return (total[0] if total else None), failure

    def train(
        self,
        loop: Callable[[Task, Worker], None],
        task: Task,
        *,
        what: str,
        folder: Storage,
        workers: int,
        cpus: int,
        gpu: int,
        on_epoch: Callable[[Metrics], None],
    ) -> list[Metrics]:
        """Train with one rank."""
        assert workers == 1
        self.deadline.check()
        worker = LocalWorker(0, 1, folder, on_epoch, self.deadline, bool(gpu))
        try:
            _persistently(partial(loop, task, worker), TRAINING_RETRIES, f"{what}: starting again from the last kept epoch")
        except TimeIsUp:
            raise
        except Exception as error:
            raise TrainingFailed(f"{what}: {describe(error)} (rank 0)") from error
        return kept(folder)

    def sweep(
        self,
        function: Callable[[Task, Report], None],
        cells: Mapping[str, Task],
        *,
        what: str,
        at_once: int,
        cpus: float,
        gpu: float,
        on_result: Callable[[str, dict[str, Any]], None],
    ) -> None:
        """Run trials in their order."""
        causes: dict[str, str] = {}
        done = 0
        for name, cell in cells.items():
            self.deadline.check()
            try:
                _persistently(partial(function, cell, partial(on_result, name)), TRIAL_RETRIES, f"{what}: {name} starts again")
            except TimeIsUp:
                raise
            except Exception as error:
                causes[name] = describe(error)
                log.error("%s: %s failed: %s", what, name, causes[name])
                continue
            done += 1
            log.info("%s: %s done, %d of %d", what, name, done, len(cells))
        if causes:
            raise WorkFailed(what, causes)

    def close(self) -> None:
        """Do nothing."""


def _persistently(call: Callable[[], Result], retries: int, again: str) -> Result:
    """Call, and after storage errors call again, up to `retries` times."""
    for _ in range(retries):
        try:
            return call()
        except OSError as error:
            log.warning("%s after %s", again, describe(error))
    return call()
