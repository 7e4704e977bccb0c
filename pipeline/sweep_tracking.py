"""A sweep in MLflow: its own run as parent, a child for every point, and below each what a run usually has.

What the points share, the packing and the surrogate, is logged once, under the sweep's own run.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipeline.comparison import crafting_seconds
from pipeline.config import RunConfig
from pipeline.points import settings
from pipeline.results import Finished, finished
from pipeline.stage import digest
from pipeline.storage import Folder
from pipeline.tracking import Tracker

log = logging.getLogger(__name__)

PARENT = "mlflow.parentRunId"


class SweepTracker(Tracker):
    """The tracker of a run whose points are swept."""

    @property
    def uri(self) -> str:
        """Of the MLflow server or database."""
        return self._uri

    @property
    def run_id(self) -> str | None:
        """Of the sweep's own run; None where nothing could be logged yet."""
        known: str | None = self._state.get("parent")
        return known

    @property
    def experiment_id(self) -> str:
        """Where the points go as well."""
        return self._experiment()

    def log_outcome(self, folder: Folder, text: str) -> None:
        """Log what all points together show: pictures and tables as artifacts, and the table as the description.

        Args:
            folder: of the comparison.
            text: plain, in columns.
        """
        logged = digest([self.run_id, text])
        if not self.run_id or self._state.get("outcome") == logged:
            return
        try:
            self._open(finished(self._folder))
            shown = [name for name in folder.names() if name.endswith((".html", ".png", ".csv"))]
            self._log_files(self.run_id, {f"comparison/{name}": folder.read(name) for name in shown})
            self._client.set_tag(self.run_id, "mlflow.note.content", f"```\n{text.strip()}\n```")
            self._remember(outcome=digest([self.run_id, text]))
        except self._mlflow_error() as error:
            log.error("tracking: the outcome of the sweep was not logged, the next start will try again (%s)", error)


class PointTracker(Tracker):
    """The tracker of one point."""

    def __init__(self, config: RunConfig, folder: Folder, sweep: SweepTracker) -> None:
        """Find what was logged of this point before; `sweep` is where it belongs."""
        self._sweep = sweep
        super().__init__(replace(config, tracking_uri=sweep.uri), folder)

    def log_stage(self, name: str) -> None:
        """Log a finished stage, unless that was done, or there is nothing for it to be nested in."""
        if self._sweep.run_id:
            super().log_stage(name)

    def _logged(self, stage: str) -> Any:
        return super()._logged(stage) if self._state.get("under") == self._sweep.run_id else None

    def _open(self, found: Finished) -> None:
        if self._state and self._state.get("under") != self._sweep.run_id:
            self._state["identity"] = None  # of a sweep's run that was replaced: this one is as well
        super()._open(found)
        self._remember(under=self._sweep.run_id)

    def _experiment(self) -> str:
        return self._sweep.experiment_id

    def _create(self, name: str, tags: Mapping[str, Any], start: float) -> str:
        own = {} if PARENT in tags else {PARENT: self._sweep.run_id, **settings(self._folder)}
        return super()._create(name, {**tags, **own}, start)

    def _surrogate(self, found: Finished) -> None:
        """Logged once, under the sweep's own run."""

    def _protect(self, found: Finished) -> None:
        super()._protect(found)
        protect = found["protect"]
        cost = {"gradients": protect.counts["gradients"], "crafting_seconds": crafting_seconds(protect)}
        self._log_metrics(self._state["parent"], cost)  # where they chart against the accuracies of the point
