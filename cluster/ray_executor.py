"""Work on Ray: on the cluster that this process was submitted to, or on an embedded one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cluster import pool, session, sweep, training
from cluster.deadline import NEVER, Deadline
from cluster.epochs import Metrics
from cluster.resources import Resources
from cluster.work import WorkFailed


@dataclass(frozen=True)
class RayExecutor:
    """The five calls of `Executor` on Ray; arguments are described there."""

    deadline: Deadline = NEVER

    def connect(self, workers: int | None = None) -> Resources:
        """Join a cluster, or start one."""
        return session.connect(workers)

    def run_all(self, *arguments: Any, **named: Any) -> Iterator[tuple[str, Any]]:
        """Run pieces as Ray tasks."""
        return pool.run_all(*arguments, **named, deadline=self.deadline)

    def combine_all(self, *arguments: Any, **named: Any) -> tuple[Any, WorkFailed | None]:
        """Run pieces as Ray tasks, and combine their results in a tree of further tasks."""
        return pool.combine_all(*arguments, **named, deadline=self.deadline)

    def train(self, *arguments: Any, **named: Any) -> list[Metrics]:
        """Train on Ray Train."""
        return training.train(*arguments, **named, deadline=self.deadline)

    def sweep(self, *arguments: Any, **named: Any) -> None:
        """Run trials on Ray Tune."""
        sweep.sweep(*arguments, **named, deadline=self.deadline)

    def close(self) -> None:
        """Leave the cluster."""
        session.close()
