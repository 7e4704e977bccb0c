"""An executor whose work somebody watches: what begins, every epoch, and every finished piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.deadline import Deadline
from cluster.epochs import Metrics
from cluster.executor import Executor
from cluster.resources import Resources
from cluster.work import Work, WorkFailed


class Watcher(Protocol):
    """Somebody who watches. Both calls return at once and raise nothing."""

    def begun(self, what: str) -> None:
        """Note that the work of this name has begun."""

    def told(self, what: str, metrics: Mapping[str, Any]) -> None:
        """Note an epoch of a training or a report of a trial, by its name, or the `units` of a piece of the work."""


@dataclass(frozen=True)
class WatchedExecutor:
    """The five calls of another executor; see there for the arguments."""

    executor: Executor
    watcher: Watcher

    @property
    def deadline(self) -> Deadline:
        """The deadline of the other executor."""
        return self.executor.deadline

    def connect(self, workers: int | None = None) -> Resources:
        """Prepare the other executor."""
        return self.executor.connect(workers)

    def run_all(self, function: Callable[..., Any], pieces: Sequence[Work], *, what: str, **named: Any) -> Iterator[tuple[str, Any]]:
        """Run pieces, and tell of each."""
        self.watcher.begun(what)
        units = {piece.name: piece.units for piece in pieces}
        for name, result in self.executor.run_all(function, pieces, what=what, **named):
            self.watcher.told(what, {"units": units[name]})
            yield name, result

    def combine_all(self, *arguments: Any, what: str, **named: Any) -> tuple[Any, WorkFailed | None]:
        """Run pieces and combine their results."""
        self.watcher.begun(what)
        return self.executor.combine_all(*arguments, what=what, **named)

    def train(self, *arguments: Any, what: str, on_epoch: Callable[[Metrics], None], **named: Any) -> list[Metrics]:
        """Train, and tell of each epoch."""
        self.watcher.begun(what)

        def told(row: Metrics) -> None:
            on_epoch(row)
            self.watcher.told(what, row)

        return self.executor.train(*arguments, what=what, on_epoch=told, **named)

    def sweep(self, *arguments: Any, what: str, on_result: Callable[[str, dict[str, Any]], None], **named: Any) -> None:
        """Run trials, and tell of each report."""
        self.watcher.begun(what)

        def told(name: str, row: dict[str, Any]) -> None:
            on_result(name, row)
            self.watcher.told(name, row)

        self.executor.sweep(*arguments, what=what, on_result=told, **named)

    def close(self) -> None:
        """Close the other executor."""
        self.executor.close()


def watched(executor: Executor, watcher: Watcher | None) -> Executor:
    """Return the executor with somebody who watches, if there is one."""
    return WatchedExecutor(executor, watcher) if watcher else executor
