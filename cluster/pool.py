"""One Ray task per piece of work: bounded submission, retries, any order, a progress line, failures kept to the end."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ray

log = logging.getLogger(__name__)

Result = TypeVar("Result")
RETRIES = 3  # after a dead worker or a storage error; other errors are final
REPORT_SECONDS = 10.0  # at most one progress line in this time
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


def run_all(
    function: Callable[..., Result],
    pieces: Sequence[Work],
    *,
    what: str,
    unit: str = "images",
    at_once: int,
    cpus: float = 1,
    gpus: float = 0,
) -> Iterator[tuple[str, Result]]:
    """Run `function(*arguments)` for every piece as Ray tasks and yield (name, result) as they finish.

    Args:
        function: module-level; must give the same outcome when it runs again.
        pieces: the work; each finished piece is yielded once.
        what: for the progress line and errors, e.g. "protect".
        unit: what `units` counts.
        at_once: tasks in flight at a time.
        cpus: CPUs a task holds, which is also its number of threads.
        gpus: GPUs a task holds.

    Raises:
        WorkFailed: after all other pieces are through.
    """
    # Resources by .options only: a GPU in the decorator would start a new process, and load torch again, for every task.
    task = ray.remote(function).options(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES, retry_exceptions=[OSError])
    waiting = list(reversed(pieces))
    running: dict[Any, Work] = {}
    causes: dict[str, str] = {}
    total, done, begun, told = sum(piece.units for piece in pieces), 0, time.monotonic(), time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                piece = waiting.pop()
                running[task.remote(*piece.arguments)] = piece
            (finished,), _ = ray.wait(list(running), num_returns=1)
            piece = running.pop(finished)
            done += piece.units
            try:
                result = ray.get(finished)
            except ray.exceptions.RayError as error:
                causes[piece.name] = describe(error)
                log.error("%s: %s failed: %s", what, piece.name, causes[piece.name])
                log.debug("%s: %s", piece.name, error)  # with the traceback of the task
                continue
            now = time.monotonic()
            if now - told > REPORT_SECONDS or done == total:
                rate = done / (now - begun)
                log.info("%s: %d of %d %s, %.3g %s/s, %.0f s left", what, done, total, unit, rate, unit, (total - done) / rate)
                told = now
            yield piece.name, result
    finally:  # also when the caller stops listening
        for reference in running:
            ray.cancel(reference, force=True)
        if running:  # a cancelled task must not write any more when this returns
            ray.wait(list(running), num_returns=len(running), timeout=CANCEL_SECONDS)
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
