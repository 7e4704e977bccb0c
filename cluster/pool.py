"""One Ray task, or a chain of them, per piece of work: retries, any order, a progress line, failures kept to the end.

A little more work is submitted than the cluster has room for. That is what an autoscaler sees, and the machines that it brings find work.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray

log = logging.getLogger(__name__)

Result = TypeVar("Result")
RETRIES = 3  # after a dead worker or a storage error; other errors are final
REPORT_SECONDS = 10.0  # at most one progress line in this time
LOOK_SECONDS = 2.0  # between two looks at the size of the cluster
AHEAD = 2  # pieces submitted for each that there is room for
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
class Room:
    """How much is worked on at a time.

    Attributes:
        at_once: pieces in flight; None: whatever the cluster has room for, also when it grows or shrinks meanwhile.
        cpus: CPUs a task holds, which is also its number of threads.
        gpus: GPUs a task holds; may be a fraction.
    """

    at_once: int | None = None
    cpus: float = 1
    gpus: float = 0

    def pieces(self) -> int:
        """How many to have submitted, by what the cluster has now."""
        if self.at_once is not None:
            return self.at_once
        have = ray.cluster_resources()
        room = have.get("GPU", 0) / self.gpus if self.gpus else have.get("CPU", 0) / self.cpus
        return AHEAD * max(1, int(room))


def run_all(
    function: Callable[..., Result], pieces: Sequence[Work], *, what: str, unit: str = "images", room: Room = Room()
) -> Iterator[tuple[str, Result]]:
    """Run `function(*arguments)` for every piece as Ray tasks and yield (name, result) as they finish.

    Args:
        function: module-level, or a `Chain` of such; must give the same outcome when it runs again.
        pieces: the work; each finished piece is yielded once.
        what: for the progress line and errors, e.g. "protect".
        unit: what `units` counts.
        room: how many at a time, and on what.

    Raises:
        WorkFailed: after all other pieces are through.
    """
    for name, result, _ in _run(_called, function, pieces, what, unit, room):
        yield name, result


def combine_all(
    function: Callable[..., Result], combine: Callable[..., Result], pieces: Sequence[Work], *, what: str, unit: str = "images", room: Room
) -> tuple[Result | None, WorkFailed | None]:
    """Run `function(*arguments)` for every piece, and `combine(*results)` over all results, in any order, in a tree of tasks.

    Results stay on the machines that made them: this process never holds more than the last.

    Args:
        function: see `run_all`.
        combine: module-level; takes two results or more, and is associative and commutative to the bit.
        pieces: see `run_all`.
        what: see `run_all`.
        unit: see `run_all`.
        room: see `run_all`.

    Returns:
        What came out of all pieces that did not fail, None if there are none, and the failure of those that did.
    """
    task = ray.remote(combine).options(name=f"{what}: combine", num_cpus=room.cpus, max_retries=RETRIES)
    levels: list[list[Any]] = [[]]
    failure = None
    try:
        for _, _, kept in _run(_kept, function, pieces, what, unit, room):
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
    return ray.get(rest[0] if len(rest) == 1 else task.remote(*rest)), failure


def _called(function: Callable[..., Any], *arguments: Any) -> tuple[Any, None]:
    return function(*arguments), None


def _kept(function: Callable[..., Any], *arguments: Any) -> tuple[None, Any]:
    return None, function(*arguments)


def _value(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


@dataclass(frozen=True)
class _Running:
    piece: Work
    tasks: tuple[Any, ...]  # all of its tasks
    kept: Any  # reference to what stays on the cluster


def _submit(step: Any, last: Any, function: Callable[..., Any], piece: Work, what: str, room: Room) -> _Running:
    """Start a piece: one task (`last`), or for a chain on GPUs three that hand on what they made."""
    options = {"name": f"{what}: {piece.name}", "num_cpus": room.cpus, "max_retries": RETRIES, "retry_exceptions": [OSError]}
    made: list[Any] = []
    gpus = room.gpus
    if isinstance(function, Chain) and gpus:
        made.append(step.options(**options).remote(function.before, *piece.arguments))
        made.append(step.options(**options, num_gpus=gpus).remote(function.function, *piece.arguments, *made))
        function, gpus = function.after, 0
    done, kept = last.options(**options, num_gpus=gpus, num_returns=2).remote(function, *piece.arguments, *made)
    return _Running(piece, (*made, done), kept)


def _run(
    last: Callable[..., tuple[Any, Any]], function: Callable[..., Any], pieces: Sequence[Work], what: str, unit: str, room: Room
) -> Iterator[tuple[str, Any, Any]]:
    """(name, what came back, reference to what stayed) of each piece, as they finish."""
    # Resources by .options only: a GPU in the decorator would start a new process, and load torch again, for every task.
    step, end = ray.remote(_value), ray.remote(last)
    waiting = list(reversed(pieces))
    running: dict[Any, _Running] = {}
    causes: dict[str, str] = {}
    progress = _Progress(what, unit, sum(piece.units for piece in pieces))
    most, looked = 0, -math.inf
    try:
        while waiting or running:
            if waiting and time.monotonic() - looked > LOOK_SECONDS:
                most, looked = room.pieces(), time.monotonic()
            while waiting and len(running) < most:
                started = _submit(step, end, function, waiting.pop(), what, room)
                running[started.tasks[-1]] = started
            finished, _ = ray.wait(list(running), num_returns=1, timeout=LOOK_SECONDS if waiting else None)
            for reference in finished:
                ended = running.pop(reference)
                progress.add(ended.piece.units)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayError as error:
                    causes[ended.piece.name] = describe(error)
                    log.error("%s: %s failed: %s", what, ended.piece.name, causes[ended.piece.name])
                    log.debug("%s: %s", ended.piece.name, error)  # with the traceback of the task
                    continue
                progress.tell()
                yield ended.piece.name, result, ended.kept
    finally:  # also when the caller stops listening
        left = [task for each in running.values() for task in each.tasks]
        for task in left:
            ray.cancel(task, force=True)
        if left:  # a cancelled task must not write any more when this returns
            ray.wait(left, num_returns=len(left), timeout=CANCEL_SECONDS)
    if causes:
        raise WorkFailed(what, causes)


class _Progress:
    """One line every now and then: how much is through, how fast, how long the rest will take."""

    def __init__(self, what: str, unit: str, total: int) -> None:
        self.what, self.unit, self.total, self.done = what, unit, total, 0
        self.begun = self.told = time.monotonic()

    def add(self, units: int) -> None:
        """Some are through, well or not."""
        self.done += units

    def tell(self) -> None:
        """Say so, if it is time to, or all is through."""
        now = time.monotonic()
        if now - self.told > REPORT_SECONDS or self.done == self.total:
            rate = self.done / (now - self.begun)
            left = (self.total - self.done) / rate
            log.info("%s: %d of %d %s, %.3g %s/s, %.0f s left", self.what, self.done, self.total, self.unit, rate, self.unit, left)
            self.told = now


def describe(error: BaseException) -> str:
    """One line of what went wrong, without Ray's wrapping."""
    for wrapped in ("cause", "health_check_failure", "controller_failure"):
        if isinstance(inner := getattr(error, wrapped, None), BaseException):
            return describe(inner)
    text = " ".join(re.sub(r"\x1b\[\d+m", "", str(error)).split()) or "no message"  # Ray colours its messages
    if len(text) > MOST_CHARACTERS:  # what matters may be at either end
        text = f"{text[: MOST_CHARACTERS // 2]} [...] {text[-MOST_CHARACTERS // 2 :]}"
    return f"{type(error).__name__}: {text}"
