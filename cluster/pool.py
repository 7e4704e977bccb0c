"""One Ray task, or a chain of them, per piece of work: retries, any order, a progress line, failures kept to the end.

A little more work is submitted than the cluster has room for. That is what an autoscaler sees, and the machines that it brings find work.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray

from cluster.progress import Progress

log = logging.getLogger(__name__)

Result = TypeVar("Result")
RETRIES = 3  # after a dead worker or a storage error; other errors are final
LOOK_SECONDS = 2.0  # between two looks at the size of the cluster
AHEAD = 2  # pieces submitted for each that is computed in parts, so that the next is read already
QUEUED = 8  # and for each that is not: with 2 Ray gives machines back and asks for them again, which is half as fast
FAN_IN = 8  # outcomes that one task combines
CANCEL_SECONDS = 10.0
MOST_CHARACTERS = 300  # of one cause


class WorkFailed(RuntimeError):
    """Some pieces failed for good, after all others were finished."""

    def __init__(self, what: str, causes: dict[str, str]) -> None:
        """Name every failed piece with its cause."""
        self.what, self.causes = what, causes
        lines = "; ".join(f"{name}: {cause}" for name, cause in sorted(causes.items()))
        super().__init__(f"{what}: {len(causes)} failed after every other was finished and kept ({lines})")

    def __reduce__(self) -> tuple[type[WorkFailed], tuple[str, dict[str, str]]]:
        """Survive pickling, with the causes."""
        return type(self), (self.what, self.causes)


@dataclass(frozen=True)
class Work:
    """One piece: its name, the arguments of the function, and how many units (images, say) it stands for."""

    name: str
    arguments: tuple[Any, ...]
    units: int = 1


@dataclass(frozen=True)
class Chain(Generic[Result]):
    """A piece's way in three functions, of which only the middle one needs a GPU: it waits for no disk and no image codec.

    Without GPUs they are one task, and nothing is copied between processes.

    Attributes:
        before: `before(*arguments)` reads what is needed.
        function: `function(*arguments, read)` computes.
        after: `after(*arguments, read, computed)` keeps the outcome, and returns what is to be known of it.
    """

    before: Callable[..., Any]
    function: Callable[..., Any]
    after: Callable[..., Result]

    def __call__(self, *arguments: Any) -> Result:
        """The whole way, in this process."""
        read = self.before(*arguments)
        return self.after(*arguments, read, self.function(*arguments, read))


@dataclass(frozen=True)
class Capacity:
    """How much is worked on at a time.

    Attributes:
        at_once: pieces that are computed at a time; None: whatever the cluster has room for, also when it grows or shrinks meanwhile.
        cpus: CPUs a task holds, which is also its number of threads.
        gpus: GPUs that a computing task holds; may be a fraction.
    """

    at_once: int | None = None
    cpus: float = 1
    gpus: float = 0

    def now(self) -> int:
        """How many tasks the cluster has room for at this moment."""
        have = ray.cluster_resources()
        return int(have.get("GPU", 0) / self.gpus if self.gpus else have.get("CPU", 0) / self.cpus)


def run_all(
    function: Callable[..., Result], pieces: Sequence[Work], *, what: str, unit: str = "images", capacity: Capacity = Capacity()
) -> Iterator[tuple[str, Result]]:
    """Run `function(*arguments)` for every piece as Ray tasks and yield (name, result) as they finish.

    Args:
        function: module-level, or a `Chain` of such; must give the same outcome when it runs again.
        pieces: the work; each finished piece is yielded once.
        what: for the progress line and errors, e.g. "protect".
        unit: what `units` counts.
        capacity: how many at a time, and on what.

    Raises:
        WorkFailed: after all other pieces are through.
    """
    for name, result, _ in _run(function, pieces, what, unit, capacity, keep=False):
        yield name, result


def combine_all(
    function: Callable[..., Result],
    combine: Callable[..., Result],
    pieces: Sequence[Work],
    *,
    what: str,
    unit: str = "images",
    capacity: Capacity,
) -> tuple[Result | None, WorkFailed | None]:
    """Run `function(*arguments)` for every piece, and `combine(*results)` over all results, in any order, in a tree of tasks.

    Results stay on the machines that made them: this process never holds more than the last.

    Args:
        function: see `run_all`.
        combine: module-level; takes two results or more, and is associative and commutative to the bit.
        pieces: see `run_all`.
        what: see `run_all`.
        unit: see `run_all`.
        capacity: see `run_all`.

    Returns:
        What came out of all pieces that did not fail, None if there are none, and the failure of those that did.

    Raises:
        WorkFailed: results could not be combined.
    """
    task = ray.remote(combine).options(name=f"{what}: combine", num_cpus=capacity.cpus, max_retries=RETRIES)
    levels: list[list[Any]] = [[]]
    failure = None
    try:
        for _, _, kept in _run(function, pieces, what, unit, capacity, keep=True):
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


def own_gpu() -> int:
    """The GPU that Ray gives the task that asks, as torch counts the machine's.

    A process serves many tasks, and Ray may give each another GPU, while CUDA reads only once which ones it may see: a task of the pool
    sees them all, and has to keep to its own.
    """
    given = ray.get_gpu_ids()
    return int(given[0]) if given and str(given[0]).isdecimal() else 0


def _called(function: Callable[..., Any], *arguments: Any) -> Any:
    if all(str(gpu).isdecimal() for gpu in ray.get_gpu_ids()):
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # see own_gpu
    return function(*arguments)


def _kept(function: Callable[..., Any], *arguments: Any) -> tuple[None, Any]:
    return None, _called(function, *arguments)


@dataclass(frozen=True)
class _Piece:
    """A piece that was submitted."""

    work: Work
    tasks: tuple[Any, ...]  # all of its tasks
    kept: Any  # reference to what stays on the cluster


class _Submitter:
    """Starts pieces: each as one task, or for a chain on GPUs as three, of which the first need not wait for a GPU."""

    def __init__(self, function: Callable[..., Any], what: str, capacity: Capacity, keep: bool) -> None:
        self.function, self.capacity, self.keep = function, capacity, keep
        self.chain = function if isinstance(function, Chain) and capacity.gpus else None
        # Prepared once, as Ray makes a class of each `.options`; and only there, as a GPU in the decorator would start a new process,
        # and load torch again, for every task.
        task, last = ray.remote(_called), ray.remote(_kept if keep else _called)
        always = {"name": what, "max_retries": RETRIES, "retry_exceptions": [OSError]}
        self._before = task.options(**always, num_cpus=capacity.cpus)
        self._computing = task.options(**always, num_cpus=0, num_gpus=capacity.gpus)  # the CPUs are for those that read and keep
        gpus = 0 if self.chain else capacity.gpus
        self._last = last.options(**always, num_cpus=capacity.cpus, num_gpus=gpus, num_returns=2 if keep else 1)

    def most(self) -> int:
        """How many pieces to have submitted, by what the cluster has now."""
        if self.capacity.at_once is not None:
            return self.capacity.at_once * (AHEAD if self.chain else 1)
        return max(1, self.capacity.now()) * (AHEAD if self.chain else QUEUED)

    def read(self, work: Work) -> tuple[Any, ...]:
        """Begin with a piece, where that can be done before it is computed."""
        return (self._before.remote(self.chain.before, *work.arguments),) if self.chain else ()

    def compute(self, work: Work, begun: tuple[Any, ...]) -> tuple[Any, _Piece]:
        """Go on with a piece: the task that computes, and the piece, whose last task is its outcome."""
        function = self.function
        if self.chain:
            function = self.chain.after
            begun = (*begun, self._computing.remote(self.chain.function, *work.arguments, *begun))
        done = self._last.remote(function, *work.arguments, *begun)
        done, kept = done if self.keep else (done, None)
        return (begun[-1] if self.chain else done), _Piece(work, (*begun, done), kept)


def _run(
    function: Callable[..., Any], pieces: Sequence[Work], what: str, unit: str, capacity: Capacity, *, keep: bool
) -> Iterator[tuple[str, Any, Any]]:
    """(name, what came back, reference to what stayed) of each piece, as they finish."""
    submitter = _Submitter(function, what, capacity, keep)
    waiting = list(reversed(pieces))
    begun: deque[tuple[Work, tuple[Any, ...]]] = deque()
    computing: set[Any] = set()
    running: dict[Any, _Piece] = {}
    causes: dict[str, str] = {}
    progress = Progress(what, unit, sum(piece.units for piece in pieces))
    most, looked = 0, -math.inf
    try:
        while waiting or begun or running:
            if waiting and time.monotonic() - looked > LOOK_SECONDS:
                most, looked = submitter.most(), time.monotonic()
            while waiting and len(begun) + len(running) < most:
                work = waiting.pop()
                begun.append((work, submitter.read(work)))
            while begun and (capacity.at_once is None or len(computing) < capacity.at_once):
                computes, piece = submitter.compute(*begun.popleft())
                computing.add(computes)
                running[piece.tasks[-1]] = piece
            ended, others = ray.wait(list({*running, *computing}), num_returns=1, timeout=LOOK_SECONDS, fetch_local=False)
            if ended and others:  # all that have ended by now, for one look at those that have not
                ended += ray.wait(others, num_returns=len(others), timeout=0, fetch_local=False)[0]
            if progress.stalled(bool(ended)) and not capacity.now():
                log.warning("%s: waiting for a machine with %s", what, "a GPU" if capacity.gpus else "a CPU")
            for reference in ended:
                computing.discard(reference)
                if reference not in running:
                    continue
                piece = running.pop(reference)
                progress.add(piece.work.units)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayError as error:
                    computing.difference_update(piece.tasks)
                    causes[piece.work.name] = describe(error)
                    log.error("%s: %s failed: %s", what, piece.work.name, causes[piece.work.name])
                    log.debug("%s: %s", piece.work.name, error)  # with the traceback of the task
                    if keep:
                        with suppress(ray.exceptions.RayError):
                            ray.get(piece.kept)  # or Ray prints that nobody looked
                    continue
                progress.tell()
                yield piece.work.name, result, piece.kept
    finally:  # also when the caller stops listening
        left = [task for _, tasks in begun for task in tasks] + [task for piece in running.values() for task in piece.tasks]
        for task in left:
            ray.cancel(task, force=True)
        if left:  # a cancelled task must not write any more when this returns
            _, still = ray.wait(left, num_returns=len(left), timeout=CANCEL_SECONDS)
            if still:
                log.warning("%s: %d tasks did not end within %.0f s", what, len(still), CANCEL_SECONDS)
    if causes:
        raise WorkFailed(what, causes)


def describe(error: BaseException) -> str:
    """One line of what went wrong, without Ray's wrapping."""
    for wrapped in ("cause", "health_check_failure", "controller_failure"):
        if isinstance(inner := getattr(error, wrapped, None), BaseException):
            return describe(inner)
    text = " ".join(re.sub(r"\x1b\[\d+m", "", str(error)).split()) or "no message"  # Ray colours its messages
    if len(text) > MOST_CHARACTERS:  # what matters may be at either end
        text = f"{text[: MOST_CHARACTERS // 2]} [...] {text[-MOST_CHARACTERS // 2 :]}"
    return f"{type(error).__name__}: {text}"
