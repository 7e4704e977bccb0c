"""One Ray task, or a chain of tasks, per piece of work, with retries, in any order; failures are raised at the end.

A little more work is submitted than the cluster has room for. An autoscaler sees this demand, and the machines that it brings find work.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray

from cluster.deadline import NEVER, Deadline, TimeIsUp
from cluster.progress import Progress
from cluster.session import MACHINES_SECONDS
from cluster.work import EVERYTHING, PIECE_RETRIES, Capacity, Chain, Result, Work, WorkFailed, describe, use_gpu

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0  # between two looks at the size of the cluster
AHEAD = 2  # pieces submitted for each that is computed in parts, so that the next is read already
QUEUED = 8  # and for each that is not: with 2 Ray gives machines back and asks for them again, which is half as fast
FAN_IN = 8  # outcomes that one task combines
CANCEL_SECONDS = 10.0


def run_all(
    function: Callable[..., Result],
    pieces: Sequence[Work],
    *,
    what: str,
    unit: str = "images",
    capacity: Capacity = EVERYTHING,
    deadline: Deadline = NEVER,
) -> Iterator[tuple[str, Result]]:
    """Run `function(*arguments)` for every piece as Ray tasks and yield (name, result) as they finish: see `Executor.run_all`."""
    for name, result, _ in _run(function, pieces, what, unit, capacity, deadline, keep=False):
        yield name, result


def combine_all(
    function: Callable[..., Result],
    combine: Callable[..., Result],
    pieces: Sequence[Work],
    *,
    what: str,
    unit: str = "images",
    capacity: Capacity = EVERYTHING,
    deadline: Deadline = NEVER,
) -> tuple[Result | None, WorkFailed | None]:
    """Combine the results of all pieces in a tree of tasks: see `Executor.combine_all`.

    Results stay on the machines that made them: this process never holds more than the last.
    """
    task = ray.remote(combine).options(name=f"{what}: combine", num_cpus=capacity.cpus, max_retries=PIECE_RETRIES)
    levels: list[list[Any]] = [[]]
    failure = None
    try:
        for _, _, kept in _run(function, pieces, what, unit, capacity, deadline, keep=True):
            levels[0].append(kept)
            for height, level in enumerate(levels):
                if len(level) == FAN_IN:
                    if height + 1 == len(levels):
                        levels.append([])
                    levels[height + 1].append(task.remote(*level))
                    level.clear()
    except WorkFailed as failed:
        failure = failed
    rest = [kept for level in levels for kept in level]
    if not rest:
        return None, failure
    try:
        return ray.get(rest[0] if len(rest) == 1 else task.remote(*rest)), failure
    except ray.exceptions.RayError as error:
        raise WorkFailed(what, {"combining": describe(error)}) from error


def _called(deadline: Deadline, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the function on the GPU that Ray gives this task, unless it is too late to begin.

    A process serves many tasks, and Ray may give each another GPU, while CUDA reads only once which ones it may see: a task of the pool
    sees them all, and has to keep to its own.
    """
    deadline.check()
    given = [str(gpu) for gpu in ray.get_gpu_ids()]
    if all(gpu.isdecimal() for gpu in given):
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    use_gpu(int(given[0]) if given and given[0].isdecimal() else 0)
    return function(*arguments)


def _kept(deadline: Deadline, function: Callable[..., Any], *arguments: Any) -> tuple[None, Any]:
    return None, _called(deadline, function, *arguments)


def _slots(capacity: Capacity) -> int:
    """Return how many tasks fit the cluster at this moment."""
    have = ray.cluster_resources()
    return int(have.get("GPU", 0) / capacity.gpus if capacity.gpus else have.get("CPU", 0) / capacity.cpus)


@dataclass(frozen=True)
class _Piece:
    """A piece that was submitted."""

    work: Work
    tasks: tuple[Any, ...]  # all of its tasks
    kept: Any  # reference to the result that stays on the cluster


class _Submitter:
    """Starts pieces: each as one task, or for a chain on GPUs as three; the first need not wait for a GPU."""

    def __init__(self, function: Callable[..., Any], what: str, capacity: Capacity, deadline: Deadline, keep: bool) -> None:
        self.function, self.capacity, self.deadline, self.keep = function, capacity, deadline, keep
        self.chain = function if isinstance(function, Chain) and capacity.gpus else None
        # Prepared once, as Ray makes a class of each `.options`; and only there, as a GPU in the decorator would start a new process,
        # and load torch again, for every task.
        task, last = ray.remote(_called), ray.remote(_kept if keep else _called)
        always = {"name": what, "max_retries": PIECE_RETRIES, "retry_exceptions": [OSError]}
        self._before = task.options(**always, num_cpus=capacity.cpus)
        self._computing = task.options(**always, num_cpus=0, num_gpus=capacity.gpus)  # the CPUs are for tasks that read and save
        gpus = 0 if self.chain else capacity.gpus
        self._last = last.options(**always, num_cpus=capacity.cpus, num_gpus=gpus, num_returns=2 if keep else 1)

    def most(self) -> int:
        """Return how many pieces to have submitted, given the cluster's present size."""
        if self.capacity.at_once is not None:
            return self.capacity.at_once * (AHEAD if self.chain else 1)
        return max(1, _slots(self.capacity)) * (AHEAD if self.chain else QUEUED)

    def read(self, work: Work) -> tuple[Any, ...]:
        """Begin with a piece, where that can be done before it is computed."""
        return (self._before.remote(self.deadline, self.chain.before, *work.arguments),) if self.chain else ()

    def compute(self, work: Work, begun: tuple[Any, ...]) -> tuple[Any, _Piece]:
        """Go on with a piece: the task that computes, and the piece, whose last task is its outcome."""
        function, deadline = self.function, self.deadline
        if self.chain:
            begun = (*begun, self._computing.remote(deadline, self.chain.function, *work.arguments, *begun))
            function, deadline = self.chain.after, NEVER  # what was computed is saved
        done = self._last.remote(deadline, function, *work.arguments, *begun)
        done, kept = done if self.keep else (done, None)
        return (begun[-1] if self.chain else done), _Piece(work, (*begun, done), kept)


def _run(
    function: Callable[..., Any], pieces: Sequence[Work], what: str, unit: str, capacity: Capacity, deadline: Deadline, *, keep: bool
) -> Iterator[tuple[str, Any, Any]]:
    """Yield (name, result, reference to the result that stayed) of each piece as it finishes."""
    submitter = _Submitter(function, what, capacity, deadline, keep)
    waiting = list(reversed(pieces))
    begun: deque[tuple[Work, tuple[Any, ...]]] = deque()
    computing: set[Any] = set()
    running: dict[Any, _Piece] = {}
    causes: dict[str, str] = {}
    progress = Progress(what, unit, sum(piece.units for piece in pieces))
    most, looked, late, lost = 0, -math.inf, False, math.inf
    try:
        while waiting or begun or running:
            if waiting and deadline.passed():
                late, waiting = True, []
                continue
            if waiting and time.monotonic() - looked > LOOK_SECONDS:
                most, looked = submitter.most(), time.monotonic()
            while waiting and len(begun) + len(running) < most:
                work = waiting.pop()
                begun.append((work, submitter.read(work)))
            while begun and (capacity.at_once is None or len(computing) < capacity.at_once):
                computes, piece = submitter.compute(*begun.popleft())
                computing.add(computes)
                running[piece.tasks[-1]] = piece
            ended = _ended({*running, *computing})
            if progress.stalled(bool(ended)):
                lost = _without_machines(what, capacity, lost)
            for reference in ended:
                computing.discard(reference)
                if reference not in running:
                    continue
                piece = running.pop(reference)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayError as error:
                    computing.difference_update(piece.tasks)
                    if keep:
                        with suppress(ray.exceptions.RayError):
                            ray.get(piece.kept)  # otherwise Ray warns that nobody looked
                    if isinstance(error, TimeIsUp):
                        late = True
                        continue
                    causes[piece.work.name] = progress.failed(piece.work.name, piece.work.units, error)
                    continue
                progress.finished(piece.work.units)
                yield piece.work.name, result, piece.kept
    finally:  # also when the caller stops listening
        left = [task for _, tasks in begun for task in tasks] + [task for piece in running.values() for task in piece.tasks]
        for task in left:
            ray.cancel(task, force=True)
        if left:  # a cancelled task must not write any more when this returns
            _, still = ray.wait(left, num_returns=len(left), timeout=CANCEL_SECONDS)
            if still:
                log.warning("%s: %d tasks did not end within %.0f s", what, len(still), CANCEL_SECONDS)
    if late:
        raise TimeIsUp
    if causes:
        raise WorkFailed(what, causes)


def _without_machines(what: str, capacity: Capacity, since: float) -> float:
    """Return since when no machine has had room, as far as that was noticed; infinity if one has room now.

    Raises:
        ConnectionError: that is too long.
    """
    if _slots(capacity):
        return math.inf
    now = time.monotonic()
    kind = "a GPU" if capacity.gpus else "a CPU"
    if now - since > MACHINES_SECONDS:
        raise ConnectionError(
            f"{what}: no machine with {kind} for {MACHINES_SECONDS / 60:.0f} minutes; finished work is saved: add machines, and run "
            "the same command again"
        )
    log.warning("%s: waiting up to %.0f minutes for a machine with %s", what, MACHINES_SECONDS / 60, kind)
    return min(now, since)


def _ended(references: set[Any]) -> list[Any]:
    """Return the tasks that have ended, after a short wait for the first."""
    ended, others = ray.wait(list(references), num_returns=1, timeout=LOOK_SECONDS, fetch_local=False)
    if ended and others:  # all that have ended by now, for one look at those that have not
        ended += ray.wait(others, num_returns=len(others), timeout=0, fetch_local=False)[0]
    return list(ended)
