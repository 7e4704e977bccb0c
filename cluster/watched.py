"""An executor that reports to a watcher: what begins, every epoch, and every finished piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.deadline import Deadline
from cluster.epochs import Metrics
from cluster.executor import Executor
from cluster.resources import Resources
from cluster.watcher import Watcher
from cluster.work import Work, WorkFailed


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
        """Run pieces, and report each."""
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
        """Train, and report each epoch."""
        self.watcher.begun(what)

        def told(row: Metrics) -> None:
            on_epoch(row)
            self.watcher.told(what, row)

        return self.executor.train(*arguments, what=what, on_epoch=told, **named)

    def sweep(self, *arguments: Any, what: str, on_result: Callable[[str, dict[str, Any]], None], **named: Any) -> None:
        """Run trials, and pass on each report."""
        self.watcher.begun(what)

        def told(name: str, row: dict[str, Any]) -> None:
            on_result(name, row)
            self.watcher.told(name, row)

        self.executor.sweep(*arguments, what=what, on_result=told, **named)

    def close(self) -> None:
        """Close the other executor."""
        self.executor.close()


def watched(executor: Executor, watcher: Watcher | None) -> Executor:
    """Return the executor, reporting to the watcher if one is given."""
    return WatchedExecutor(executor, watcher) if watcher else executor
