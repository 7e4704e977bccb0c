"""Work in this process, on its GPU if it has one, and in other processes where no GPU is needed: the calls of `Executor` without Ray."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, TypeVar

from cluster.deadline import NEVER, Deadline, TimeIsUp
from cluster.epochs import Metrics, Storage, Worker, kept
from cluster.processes import Processes, cpus
from cluster.progress import Progress
from cluster.resources import Resources, divide
from cluster.work import (
    EVERYTHING,
    PIECE_RETRIES,
    TRAINING_RETRIES,
    TRIAL_RETRIES,
    Capacity,
    Chain,
    Report,
    Result,
    TrainingFailed,
    Work,
    WorkFailed,
    describe,
)

log = logging.getLogger(__name__)

Task = TypeVar("Task")

ALONE_SECONDS = 3.0  # of work in this process before others are started, which takes as long


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
    """The five calls of `Executor` in this process; see there for the arguments.

    Attributes:
        deadline: see `Executor`.
        processes: number of processes that run pieces without a GPU, and read and store pieces with one. One: this process does it all,
            a piece at a time.
    """

    deadline: Deadline = NEVER
    processes: int = 1

    def connect(self, workers: int | None = None) -> Resources:
        """Return the CPUs and the GPU of this process, for one worker.

        Raises:
            ValueError: more than one worker is asked for.
        """
        import torch

        if workers is not None and workers > 1:
            raise ValueError(f"{workers} workers are asked for, but --executor local is one: leave out --workers, or use --executor ray")
        return divide([(cpus(), int(torch.cuda.is_available()))], 1)

    def run_all(
        self, function: Callable[..., Result], pieces: Sequence[Work], *, what: str, unit: str = "images", capacity: Capacity = EVERYTHING
    ) -> Iterator[tuple[str, Result]]:
        """Run pieces in their order; with several processes yield them as they finish."""
        progress = Progress(what, unit, sum(piece.units for piece in pieces))
        causes: dict[str, str] = {}
        for piece, result in self._results(function, deque(pieces), what, capacity):
            try:
                found = result()
            except TimeIsUp:
                raise
            except Exception as error:
                causes[piece.name] = progress.failed(piece.name, piece.units, error)
                continue
            progress.finished(piece.units)
            yield piece.name, found
        if causes:
            raise WorkFailed(what, causes)

    def _results(
        self, function: Callable[..., Result], waiting: deque[Work], what: str, capacity: Capacity
    ) -> Iterator[tuple[Work, Callable[[], Result]]]:
        """Yield each piece with a function that gives its result: in this process, and if they take long, in others as well."""
        chain = function if isinstance(function, Chain) and capacity.gpus else None
        processes = self.processes if chain else 1 if capacity.gpus else min(self.processes, capacity.at_once or self.processes)
        # A GPU waits for nothing while the others start: at once, where there is one.
        until = time.monotonic() + (0 if chain else ALONE_SECONDS)
        while waiting and (processes == 1 or len(waiting) == 1 or time.monotonic() < until):
            yield self._next(function, waiting, what)
        if not waiting:
            return
        module = (chain.before if chain else function).__module__
        with Processes(min(processes, len(waiting)), module.partition(".")[0]) as others:
            if chain:
                yield from self._computed_here(chain, waiting, what, processes, others)
            else:
                yield from self._elsewhere(function, waiting, what, processes, others)

    def _next(self, function: Callable[..., Result], waiting: deque[Work], what: str) -> tuple[Work, Callable[[], Result]]:
        """Return the next piece, to be done in this process."""
        self.deadline.check()
        piece = waiting.popleft()
        return piece, _attempts(function, piece.arguments, piece, what)

    def _elsewhere(
        self, function: Callable[..., Result], waiting: deque[Work], what: str, most: int, others: Processes
    ) -> Iterator[tuple[Work, Callable[[], Result]]]:
        """Run pieces in other processes, `most` at a time. When one of them dies, all do: what is left is done in this process."""
        running: dict[Future[bytes], tuple[Work, Callable[[], Result]]] = {}
        late = False
        while running or (waiting and not late and not others.dead):
            while waiting and len(running) < most and not others.dead and not (late := self.deadline.passed()):
                piece = waiting.popleft()
                begun = others.begin(_attempts(function, piece.arguments, piece, what))
                running[begun.future] = piece, begun.result
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                piece, result = running.pop(future)
                if others.lost(future):
                    waiting.append(piece)
                else:
                    yield piece, result
        while waiting and not late:
            yield self._next(function, waiting, what)
        if late:
            raise TimeIsUp

    def _computed_here(
        self, chain: Chain[Result], waiting: deque[Work], what: str, most: int, others: Processes
    ) -> Iterator[tuple[Work, Callable[[], Result]]]:
        """Compute pieces in this process, on its GPU, while others read the next ones and store the last ones, `most` at a time."""
        first = waiting.popleft()  # is read here, while the others start
        reading: deque[tuple[Work, Callable[[], Any]]] = deque([(first, _attempts(chain.before, first.arguments, first, what))])
        storing: dict[Future[bytes], tuple[Work, Callable[[], Result]]] = {}
        late = False
        while storing or ((waiting or reading) and not late):
            while waiting and len(reading) + len(storing) < most and not late:
                piece = waiting.popleft()
                reading.append((piece, others.begin(_attempts(chain.before, piece.arguments, piece, what)).result))
            if reading and not (late := late or self.deadline.passed()):
                piece, read = reading.popleft()
                try:
                    arguments = *piece.arguments, read()
                    computed = _attempts(chain.function, arguments, piece, what)()
                except Exception as error:
                    yield piece, partial(_raise, error)
                else:
                    begun = others.begin(_attempts(chain.after, (*arguments, computed), piece, what))
                    storing[begun.future] = piece, begun.result
            idle = late or not reading
            for future in wait(storing, None if idle else 0, FIRST_COMPLETED).done:
                others.lost(future)  # then it is done here
                yield storing.pop(future)
        if late:
            raise TimeIsUp

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
            _persistently(partial(loop, task, worker), TRAINING_RETRIES, f"{what}: starting again from the last saved epoch")
        except TimeIsUp:
            raise
        except Exception as error:
            raise TrainingFailed(f"{what}: {describe(error)} (rank 0)") from error
        return kept(folder)

    def sweep(
        self,
        function: Callable[[Task, Report], None],
        tasks: Mapping[str, Task],
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
        for name, task in tasks.items():
            self.deadline.check()
            try:
                _persistently(partial(function, task, partial(on_result, name)), TRIAL_RETRIES, f"{what}: {name} starts again")
            except TimeIsUp:
                raise
            except Exception as error:
                causes[name] = describe(error)
                log.error("%s: %s failed: %s", what, name, causes[name])
                continue
            done += 1
            log.debug("%s: %s done, %d of %d", what, name, done, len(tasks))
        if causes:
            raise WorkFailed(what, causes)

    def close(self) -> None:
        """Do nothing."""


def _attempts(function: Callable[..., Result], arguments: tuple[Any, ...], piece: Work, what: str) -> Callable[[], Result]:
    """Return a call that survives storage errors, and that can be sent to another process."""
    return partial(_persistently, partial(function, *arguments), PIECE_RETRIES, f"{what}: {piece.name} is done again")


def _raise(error: Exception) -> NoReturn:
    raise error


def _persistently(call: Callable[[], Result], retries: int, again: str) -> Result:
    """Call, and after storage errors call again, up to `retries` times."""
    for _ in range(retries):
        try:
            return call()
        except OSError as error:
            log.warning("%s after %s", again, describe(error))
    return call()
