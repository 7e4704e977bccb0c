"""What the stages and sweeps know of a tracker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from pipeline.config.schema import RunConfig
from pipeline.results.run_results import RunResults
from pipeline.storage.folder import Folder
from pipeline.storage.run import Run


class Watcher(Protocol):
    """Somebody who watches the work of a stage; see `cluster.watched`."""

    def begun(self, what: str) -> None:
        """Note that the work of this name has begun."""

    def told(self, what: str, metrics: Mapping[str, Any]) -> None:
        """Note an epoch of a training, a report of a trial, or the `units` of a piece of work."""


class Tracker(Protocol):
    """What the stages and sweeps tell a tracker. No call raises anything that the tracker has met with."""

    def begin(self) -> None:
        """Show the run before its first stage."""

    def watch(self, stage: str) -> Watcher | None:
        """Return somebody who watches this stage, if anybody does."""

    def log_stage(self, name: str, results: RunResults) -> None:
        """Log a stage that has finished, or the trials of a victim stage of which some failed."""

    def begin_sweep(self, results: RunResults) -> None:
        """Have the run's own MLflow run before any point goes below it."""

    def point(self, config: RunConfig, folder: Run) -> Tracker:
        """Return the tracker of one point of the sweep."""

    def log_outcome(self, comparison: Folder, text: str) -> None:
        """Log what all points together show: the files of the comparison, and its table as plain text."""

    def close(self, status: str) -> None:
        """End what was begun as `FINISHED` or `FAILED`."""
