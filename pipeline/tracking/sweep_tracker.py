"""A sweep in MLflow: its own run as parent, a child for every point, and below each what a run usually has.

What the points share, the packing and the surrogate, is logged once, under the sweep's own run. What they differ in, that run does not
have: what was swept is a tag of it, and the values are those of its points.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from pipeline.config.schema import RunConfig
from pipeline.config.sweep_grid import swept_fields
from pipeline.results.comparison import crafting_seconds
from pipeline.results.run_results import Manifests, finished
from pipeline.storage.folder import Folder
from pipeline.storage.records import digest
from pipeline.storage.run import Run, settings
from pipeline.tracking.description import LONGEST
from pipeline.tracking.mlflow_store import NOTE
from pipeline.tracking.tracker import Tracker

log = logging.getLogger(__name__)

PARENT = "mlflow.parentRunId"
PUBLISHED = (".html", ".png", ".csv")


class SweepTracker(Tracker):
    """The tracker of a run that may have points."""

    @property
    def uri(self) -> str:
        """Of the MLflow server or database."""
        return self._store.uri

    @property
    def run_id(self) -> str | None:
        """Of the run's own MLflow run; None where nothing could be logged yet."""
        known: str | None = self._state.get("parent")
        return known

    def begin(self) -> None:
        """Have the run's own MLflow run before any point goes below it.

        Where settings have changed since, or it was deleted, that is a new one, with the shared stages. Otherwise nothing is done, and
        nothing either where none could be made: then no point is logged.
        """
        if not self.run_id:
            return
        found = finished(self._folder)
        try:
            there = self._state["identity"] == self._identity(found) and self._store.is_active(self.run_id)
            if there:
                self._store.set_tags(self.run_id, self._swept())  # it may be of another sweep, or of a run without any
        except self._store.errors() as error:
            log.error("tracking: nobody knows whether the run is still there (%s)", error)
            return
        if not there:
            self._log_missing("what the points share")

    def point(self, config: RunConfig, folder: Folder) -> PointTracker:
        """Return the tracker of one point, whose runs lie below the run's own."""
        return PointTracker(config, folder, self)

    def _swept(self) -> dict[str, str]:
        return {"swept": ", ".join(swept_fields(self._config))}

    def _of_points(self, found: Manifests) -> Collection[str]:
        fields = () if "protect" in found else swept_fields(self._config)
        by_method = "protect.method" in fields and self._config.protect.checkpoints is None
        return {*fields, "protect.checkpoints"} if by_method else fields

    def create(self, name: str, tags: Mapping[str, Any], start: float) -> str:
        """A run in the experiment of this one."""
        return super()._create(name, tags, start)

    def _create(self, name: str, tags: Mapping[str, Any], start: float) -> str:
        kind = {"stage": "sweep", **self._swept()} if self._config.sweep and PARENT not in tags else {}
        return self.create(name, {**tags, **kind}, start)

    def log_outcome(self, folder: Folder, text: str) -> None:
        """Log what all points together show: pictures and tables as artifacts, and the table as the description.

        Args:
            folder: of the comparison.
            text: plain, in columns.
        """
        if not self.run_id or self._state.get("outcome") == digest([self.run_id, text]):
            return
        try:
            self._open(finished(self._folder))
            shown = [name for name in folder.names() if name.endswith(PUBLISHED)]
            self._store.log_files(self.run_id, {f"comparison/{name}": folder.read(name) for name in shown})
            note = text.strip() if len(text) <= LONGEST else text.strip()[:LONGEST] + "…"
            self._store.client.set_tag(self.run_id, NOTE, f"```\n{note}\n```\n\nPictures: artifacts, under `comparison`.")
            self._remember(outcome=digest([self.run_id, text]))
        except self._store.errors() as error:
            log.error("tracking: the outcome of the sweep was not logged, the next start will try again (%s)", error)


class PointTracker(Tracker):
    """The tracker of one point."""

    def __init__(self, config: RunConfig, folder: Run, sweep: SweepTracker) -> None:
        """Find what was logged of this point before; `sweep` is where it belongs."""
        self._sweep = sweep
        super().__init__(replace(config, tracking_uri=sweep.uri), folder)

    def log_stage(self, name: str) -> None:
        """Log a finished stage, unless that was done, or there is nothing for it to be nested in."""
        if self._sweep.run_id:
            super().log_stage(name)

    def _logged(self, stage: str) -> Any:
        return super()._logged(stage) if self._state.get("under") == self._sweep.run_id else None

    def _open(self, found: Manifests) -> None:
        if self._state and self._state.get("under") != self._sweep.run_id:
            self._state["identity"] = None  # of a sweep's run that was replaced: this one is as well
        super()._open(found)
        self._remember(under=self._sweep.run_id)

    def _create(self, name: str, tags: Mapping[str, Any], start: float) -> str:
        own = {} if PARENT in tags else {PARENT: self._sweep.run_id, **settings(self._folder)}
        return self._sweep.create(name, {**tags, **own}, start)

    def _surrogate(self, found: Manifests) -> None:
        """Logged once, under the sweep's own run."""

    def _protect(self, found: Manifests) -> None:
        super()._protect(found)
        protect, seconds = found["protect"], crafting_seconds(found["protect"])
        cost = {"gradients": protect.counts["gradients"]} | ({} if seconds is None else {"crafting_seconds": seconds})
        self._store.log_metrics(self._state["parent"], cost)  # where they chart against the accuracies of the point
