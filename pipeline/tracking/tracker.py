"""The tracker of a run: what the stages tell it, and how a sweep nests its points.

Only the driver talks to it. MLflow is loaded when there is something to log, and never costs a run its results.

A sweep has an MLflow run for the run folder and one below it for every point. What the points share, packing and surrogate, is logged once,
under the former. What they differ in, the former does not have: its tag `swept` names the settings, and each point has its values.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from pipeline.config.marks import marked, without
from pipeline.config.schema import UNTRACKED, RunConfig
from pipeline.config.sweep_grid import swept_fields
from pipeline.results.run_results import RunResults
from pipeline.results.summary import headline
from pipeline.storage.folder import Folder
from pipeline.storage.layout import DATABASE
from pipeline.storage.records import digest, flatten
from pipeline.storage.run import Run
from pipeline.tracking import stage_logs
from pipeline.tracking.description import cut, describe
from pipeline.tracking.mlflow_store import NOTE, Store
from pipeline.tracking.parent_run import ABOVE, Identity, ParentRun
from sep.craft_config import USUAL
from sep.methods.registry import METHODS

log = logging.getLogger(__name__)

SHARED_EXPERIMENT = "sep"  # with a tracking URI of one's own; the run folder's own database has one named after the run
PUBLISHED = (".html", ".png", ".csv")  # files of a comparison
FOLLOWS_FROM = {  # tags, and the settings that decide them
    "method": {"protect.method"},
    "budget": {"protect.method", "protect.eps_levels"},
    "targets": {"protect.method", "protect.targets"},
}


class Tracker(Protocol):
    """What the stages and sweeps tell a tracker."""

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


def open_tracker(config: RunConfig, folder: Run) -> Tracker:
    """Return the tracker that the configuration asks for.

    Raises:
        ValueError: the run lies on an object store, where no SQLite database can be, and no tracking URI is given.
    """
    if config.tracking_uri == UNTRACKED:
        return NoTracker()
    if not config.tracking_uri and not folder.is_local:
        raise ValueError(
            f"a run at {folder.uri} cannot hold its own MLflow database: give --tracking-uri, an MLflow server (http://host:5000), a "
            f"database (sqlite:////absolute/path.db) or {UNTRACKED}"
        )
    return MlflowTracker(config, folder)


class NoTracker:
    """A tracker that logs nothing."""

    def log_stage(self, name: str, results: RunResults) -> None:
        """Do nothing."""

    def begin_sweep(self, results: RunResults) -> None:
        """Do nothing."""

    def point(self, config: RunConfig, folder: Run) -> Tracker:
        """Return this tracker."""
        return self

    def log_outcome(self, comparison: Folder, text: str) -> None:
        """Do nothing."""

    def close(self, status: str) -> None:
        """Do nothing."""


class MlflowTracker:
    """The tracker of a run or, with the MLflow run `above` it, of a point of its sweep."""

    def __init__(self, config: RunConfig, folder: Run, above: ParentRun | None = None) -> None:
        """Find what was logged before; nothing is logged yet."""
        self._config, self._above = config, above
        self._logs = stage_logs.OF_POINT if above else stage_logs.OF_RUN
        if above:
            self._run = ParentRun(above.store, folder, above.experiment, above)
        else:
            name = folder.path.rstrip("/").rsplit("/", 1)[-1]
            store = Store(config.tracking_uri or f"sqlite:///{folder.file(DATABASE)}")
            lost = not config.tracking_uri and not folder.exists(DATABASE)
            self._run = ParentRun(store, folder, SHARED_EXPERIMENT if config.tracking_uri else name, forget=lost)

    def log_stage(self, name: str, results: RunResults) -> None:
        """Log a stage unless it was logged already; what was logged of an earlier making of it is superseded.

        Of victims of which some failed, the others are logged. A tracker out of reach is an error in the log, not the end of the run: the
        next start logs what is missing. Without a sweep's run above it, nothing is logged of a point.
        """
        there = results.digest_of(name)
        if there and self._run.logged(name) != there and (self._above is None or self._above.id):
            self._log_missing(name, results)

    def _log_missing(self, name: str, results: RunResults) -> None:
        """Log every stage that was not logged; `name` is the one that this is about."""
        stages = [*results.manifests, *(["victim"] if results.missing_trials else []), *(["report"] if name == "report" else [])]
        try:
            self._run.open(self._identity(results))
            for stage in stages:  # a new MLflow run gets everything there is
                if self._run.logged(stage) != results.digest_of(stage):
                    self._log(stage, results)
        except self._run.store.errors() as error:
            log.error("tracking: %s was not logged, the next start will try again (%s)", name, error)

    def _log(self, stage: str, results: RunResults) -> None:
        """Log one stage, in place of what was logged of it before."""
        self._run.begin_stage(stage)
        for write in self._logs[stage]:
            write(self._run, results)
        parent, known = self._run.id, headline(results)
        assert parent
        self._run.store.log_metrics(parent, {name: known[name] for name in stage_logs.HEADLINE.get(stage, ()) if name in known})
        self._run.store.set_tags(parent, {NOTE: describe(self._config, results)})
        self._run.finish_stage(stage, results.digest_of(stage))

    def _identity(self, results: RunResults) -> Identity:
        """Return what the MLflow run is about: settings that decide what is made, and the images."""
        tree = without(results.configuration(self._config), marked(RunConfig))
        hidden = self._of_points(results)
        shared, absent = _tags(tree, results), frozenset(name for name, settings in FOLLOWS_FROM.items() if settings & hidden)
        own = {name: ", ".join(tree["victim"][f"{name}s"]) for name in ("network", "countermeasure")}
        own |= {"run_folder": results.folder.uri, "stage": "run"}
        if self._above:
            own |= {ABOVE: str(self._above.id), **{name: str(value) for name, value in results.swept.items()}}
        elif self._config.sweep:
            own |= {"swept": ", ".join(swept_fields(self._config))} | ({} if "protect" in results.manifests else {"stage": "sweep"})
        return Identity(
            digest([tree, results.manifests["pack"].digest]),
            own,
            {name: value for name, value in shared.items() if name not in absent},
            absent,
            {name: value for name, value in flatten(tree).items() if name not in hidden},
        )

    def _of_points(self, results: RunResults) -> set[str]:
        """Return the settings that the points of a sweep have instead of the run: none once the run has a release of its own."""
        if self._above or "protect" in results.manifests:
            return set()
        fields = set(swept_fields(self._config))
        by_method = "protect.method" in fields
        return fields | {f"protect.{name}" for name in USUAL if by_method and getattr(self._config.protect, name) is None}

    def begin_sweep(self, results: RunResults) -> None:
        """Have the run's own MLflow run before any point goes below it.

        Where settings have changed since, or it was deleted, that is a new one, with the shared stages. If nothing could be logged so far,
        no point is logged either.
        """
        if self._run.id:
            self._log_missing("what the points share", results)

    def point(self, config: RunConfig, folder: Run) -> Tracker:
        """Return the tracker of a point, whose MLflow run goes below this one."""
        return MlflowTracker(replace(config, tracking_uri=self._run.store.uri), folder, self._run)

    def log_outcome(self, comparison: Folder, text: str) -> None:
        """Log what all points together show: pictures and tables as artifacts, and the table as the description."""
        run, outcome = self._run, digest([self._run.id, text])
        if not run.id or run.outcome == outcome:
            return
        try:
            run.resume()
            shown = [name for name in comparison.names() if name.endswith(PUBLISHED)]
            run.store.log_files(run.id, {f"comparison/{name}": comparison.read(name) for name in shown})
            run.store.set_tags(run.id, {NOTE: f"```\n{cut(text.strip())}\n```\n\nPictures: artifacts, under `comparison`."})
            run.remember(outcome=outcome)
        except run.store.errors() as error:
            log.error("tracking: the outcome of the sweep was not logged, the next start will try again (%s)", error)

    def close(self, status: str) -> None:
        """End the MLflow run as `FINISHED` or `FAILED`, if there is one and it has not ended so before."""
        try:
            self._run.close(status)
        except self._run.store.errors() as error:
            log.error("tracking: the run could not be marked as %s (%s)", status, error)


def _tags(tree: Mapping[str, Any], results: RunResults) -> dict[str, str]:
    """Return the tags by which a run and everything below it can be found."""
    protect, size = tree["protect"], results.manifests["pack"].counts
    kind = METHODS[protect["method"]]
    allowed = kind.budget(protect["eps_levels"], (3, size["height"], size["width"]))
    tags = {"method": protect["method"], "budget": str(allowed), "dataset": tree["data"], "preset": tree["preset"]}
    return tags | ({"targets": protect["targets"]} if kind.targets else {})
