"""The tracker as the stages and sweeps know it."""

from __future__ import annotations

from typing import Protocol

from cluster.watcher import Watcher
from pipeline.config.schema import RunConfig
from pipeline.results.run_results import RunResults
from pipeline.storage.folder import Folder
from pipeline.storage.run import Run


class Tracker(Protocol):
    """The calls by which stages and sweeps report to a tracker. None raises an error of the tracker."""

    def begin(self) -> None:
        """Show the run before its first stage."""

    def watch(self, stage: str) -> Watcher | None:
        """Return the watcher of this stage, if it has one."""

    def log_stage(self, name: str, results: RunResults) -> None:
        """Log a stage that has finished, or the trials of a victim stage in which some failed."""

    def begin_sweep(self, results: RunResults) -> None:
        """Have the run's own MLflow run before any point goes below it."""

    def point(self, config: RunConfig, folder: Run) -> Tracker:
        """Return the tracker of one point of the sweep."""

    def log_outcome(self, comparison: Folder, text: str) -> None:
        """Log what all points together show: the files of the comparison, and its table as plain text."""

    def close(self, status: str) -> None:
        """End what was begun as `FINISHED` or `FAILED`."""
