"""The types of work: pieces that go into an executor, and failures that come out. They do not need Ray."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")
Report = Callable[[dict[str, float]], None]  # a trial calls it with its metrics
MOST_CHARACTERS = 300  # of one cause

# Starts after the first: after a dead process or a storage error; other errors are final.
PIECE_RETRIES = 3
TRIAL_RETRIES = 2
TRAINING_RETRIES = 5

_gpu: ContextVar[int] = ContextVar("gpu", default=0)


class WorkFailed(RuntimeError):
    """Some pieces failed for good, after all others were finished."""

    def __init__(self, what: str, causes: dict[str, str]) -> None:
        """Name every failed piece with its cause."""
        self.what, self.causes = what, causes
        lines = "; ".join(f"{name}: {cause}" for name, cause in sorted(causes.items()))
        super().__init__(f"{what}: {len(causes)} failed; the others are finished and saved ({lines})")

    def __reduce__(self) -> tuple[type[WorkFailed], tuple[str, dict[str, str]]]:
        """Survive pickling, with the causes."""
        return type(self), (self.what, self.causes)


class TrainingFailed(RuntimeError):
    """The training ended before its last epoch; the epochs it reported stay."""


@dataclass(frozen=True)
class Work:
    """One piece of work: its name, the function's arguments, and its size in units, such as images."""

    name: str
    arguments: tuple[Any, ...]
    units: int = 1


@dataclass(frozen=True)
class Chain(Generic[Result]):
    """A piece of work in three functions. Only the middle one needs a GPU, which then waits for no disk and no image codec.

    Without GPUs they are one task, and nothing is copied between processes.

    Attributes:
        before: `before(*arguments)` reads what is needed.
        function: `function(*arguments, read)` computes.
        after: `after(*arguments, read, computed)` stores the outcome, and returns a summary of it.
    """

    before: Callable[..., Any]
    function: Callable[..., Any]
    after: Callable[..., Result]

    def __call__(self, *arguments: Any) -> Result:
        """Call all three, in this process."""
        read = self.before(*arguments)
        return self.after(*arguments, read, self.function(*arguments, read))


@dataclass(frozen=True)
class Capacity:
    """The number of pieces to work on at a time. Without Ray, one is computed on the GPU, whatever this says.

    Attributes:
        at_once: pieces that are computed at a time; None: whatever the cluster has room for, also when it grows or shrinks meanwhile.
        cpus: CPUs a task holds, which is also its number of threads.
        gpus: GPUs that a computing task holds; may be a fraction.
    """

    at_once: int | None = None
    cpus: float = 1
    gpus: float = 0


EVERYTHING = Capacity()


def own_gpu() -> int:
    """Return the number of the GPU that the present piece of work is to compute on, as torch counts the machine's."""
    return _gpu.get()


def use_gpu(number: int) -> None:
    """Set what `own_gpu` returns: an executor calls this before it calls a piece of work."""
    _gpu.set(number)


def describe(error: BaseException) -> str:
    """Return one line about an error, without Ray's wrapping."""
    for wrapped in ("cause", "health_check_failure", "controller_failure"):
        if isinstance(inner := getattr(error, wrapped, None), BaseException):
            return describe(inner)
    text = " ".join(re.sub(r"\x1b\[\d+m", "", str(error)).split()) or "no message"  # Ray colours its messages
    if len(text) > MOST_CHARACTERS:  # what matters may be at either end
        text = f"{text[: MOST_CHARACTERS // 2]} [...] {text[-MOST_CHARACTERS // 2 :]}"
    return f"{type(error).__name__}: {text}"
