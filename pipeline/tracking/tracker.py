"""The tracker of a run: what the stages tell it, and how a sweep nests its points.

Only the driver talks to it. MLflow is loaded when there is something to log, and never costs a run its results: see `outbox`.

A sweep has an MLflow run for the run folder and one below it for every point. What the points share, packing and surrogate, is logged once,
under the former. What they differ in, the former does not have: its tag `swept` names the settings, and each point has its values.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from pipeline.config.marks import marked, without
from pipeline.config.schema import UNTRACKED, RunConfig
from pipeline.config.sweep_grid import swept_fields
from pipeline.results.run_results import RunResults
from pipeline.results.summary import headline
from pipeline.results.verdict import verdict
from pipeline.storage.folder import Folder
from pipeline.storage.layout import CONFIG, DATABASE
from pipeline.storage.records import digest, flatten, to_json
from pipeline.storage.run import Run
from pipeline.tracking import own_database, stage_logs
from pipeline.tracking.children import readable
from pipeline.tracking.description import describe
from pipeline.tracking.live import Live
from pipeline.tracking.mlflow_store import NOTE
from pipeline.tracking.origin import RunLog, origin
from pipeline.tracking.parent_run import ABOVE, Identity, ParentRun
from pipeline.tracking.protocol import Tracker, Watcher
from sep.craft_config import USUAL
from sep.methods.registry import METHODS

log = logging.getLogger(__name__)

PLACES = {"data", "run", "config", "add"}  # settings that are paths; the tags `dataset` and `run_folder` have them
FOLLOWS_FROM = {  # tags, and the settings that decide them
    "method": {"protect.method"},
    "budget": {"protect.method", "protect.eps_levels"},
    "targets": {"protect.method", "protect.targets"},
}


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

    def begin(self) -> None:
        """Do nothing."""

    def watch(self, stage: str) -> None:
        """Return nobody."""

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
    """The tracker of a run or, with the MLflow run `above` it, of a point of its sweep.

    Whatever is sent goes through the tracker's own thread; what a stage has made is waited for at its end, while nothing is computed.
    """

    def __init__(self, config: RunConfig, folder: Run, above: ParentRun | None = None) -> None:
        """Find what was logged before; nothing is logged yet."""
        self._config, self._folder, self._above = config, folder, above
        self._logs = stage_logs.OF_POINT if above else stage_logs.OF_RUN
        self._live: Live | None = None
        self._shown = False  # with where it comes from, by this start
        self._machine: Any = None
        self._said: RunLog | None = None
        if above:
            self._run = ParentRun(above.store, folder, above.experiment, above)
        else:
            self._run = ParentRun.of(folder, config.tracking_uri)
        self._outbox = self._run.store.outbox

    def begin(self) -> None:
        """Show the run as running, unless it is known already: then it goes on with the first thing that happens."""
        self._said = RunLog()
        try:
            results = RunResults.read(self._folder)
            if self._run.is_about(self._identity(results)):
                return
        except Exception as error:  # what is wrong with the run, the stage that reads it will say
            log.debug("tracking: the run cannot be read yet", exc_info=error)
            return
        self._run.store.load()
        self._outbox.post("the run", lambda: self._open(results), again=True)

    def watch(self, stage: str) -> Watcher | None:
        """Return the watcher that logs a stage while it runs; of a point, only below a sweep's run."""
        if self._above and not self._above.id:
            return None
        self._live = Live(stage, self._config, self._run, lambda: self._open(RunResults.read(self._folder)))
        return self._live

    def _open(self, results: RunResults) -> None:
        """Have an MLflow run about these results and this configuration; in the tracker's thread, like all that begins with `_`."""
        if self._above is None and self._run.store.artifacts and self._folder.exists(DATABASE):
            own_database.follow(self._folder.path)
        self._run.open(self._identity(results))
        if self._above is None and not self._shown:
            self._shown = True
            log.info("tracking: %s", self._run.place)
            self._run.store.set_tags(str(self._run.id), origin(self._run.store))
            self._machine = self._run.store.watch_machine(str(self._run.id))

    def log_stage(self, name: str, results: RunResults) -> None:
        """Log a stage unless it was logged already; what was logged of an earlier making of it is superseded.

        Of victims of which some failed, the others are logged. A tracker out of reach is an error in the log, not the end of the run: the
        next start logs what is missing. Without a sweep's run above it, nothing is logged of a point.
        """
        self._outbox.wait()  # for what is still on its way, which may change what was logged
        there = {stage: results.digest_of(stage) for stage in (name, *results.found)}
        news = any(content and self._run.logged(stage) != content for stage, content in there.items())
        if news and (self._above is None or self._above.id):
            self._log_missing(name, results)

    def _log_missing(self, name: str, results: RunResults) -> None:
        """Log every stage that was not logged; `name` is the one that this is about."""
        stages = [*results.manifests, *(["victim"] if results.missing_trials else []), *(["report"] if name == "report" else [])]
        stages += results.found
        self._run.store.load()
        self._outbox.post(name, lambda: self._log_all(stages, results), again=True)
        self._outbox.wait()

    def _log_all(self, stages: Collection[str], results: RunResults) -> None:
        self._open(results)
        if self._live:
            self._live.flush()
        failed: Exception | None = None
        for stage in stages:  # a new MLflow run gets everything there is
            if self._run.logged(stage) != results.digest_of(stage):
                try:
                    self._log(stage, results)
                except Exception as error:  # of one stage, perhaps
                    failed = failed or error
        if failed:
            raise failed

    def _log(self, stage: str, results: RunResults) -> None:
        """Log one stage, in place of what was logged of it before."""
        self._run.resume()
        names = self._logs[stage](self._run, results)
        parent, known = self._run.id, headline(results)
        assert parent
        measured = {name: known[name] for name in stage_logs.HEADLINE.get(stage, ()) if name in known}
        self._run.store.log_metrics(parent, {name: value for name, value in measured.items() if not isinstance(value, str)})
        constants = {name: f"{known[name]:g}" for name in stage_logs.CONSTANTS.get(stage, ()) if name in known}
        told = {NOTE: describe(results), "verdict": verdict(results).label}
        self._run.store.set_tags(parent, told | constants)
        self._run.store.log_files(parent, {CONFIG: to_json(results.configuration(self._config))})
        self._run.finish_stage(stage, results.digest_of(stage), names)

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
        params = {name: value for name, value in flatten(tree).items() if name not in hidden and name not in PLACES}
        return Identity(
            digest=digest(without(tree, ["run"])),  # a folder that was moved is still the same run
            images=results.manifests["pack"].digest if "pack" in results.manifests else None,
            own=own,
            shared={name: value for name, value in shared.items() if name not in absent},
            absent=absent,
            params=readable(params),
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
        self._log_missing("what the points share", results)

    def point(self, config: RunConfig, folder: Run) -> Tracker:
        """Return the tracker of a point, whose MLflow run goes below this one."""
        return MlflowTracker(config, folder, self._run)

    def log_outcome(self, comparison: Folder, text: str) -> None:
        """Log what all points together show: pictures and tables as artifacts, and the table as the description."""
        self._outbox.wait()
        outcome = digest([self._run.id, text])
        if self._run.id and self._run.outcome != outcome:
            self._outbox.post("the outcome of the sweep", lambda: self._log_outcome(comparison, text, outcome), again=True)
            self._outbox.wait()

    def _log_outcome(self, comparison: Folder, text: str, outcome: str) -> None:
        run = self._run
        assert run.id
        run.resume()
        stage_logs.log_comparison(run, comparison, text)
        run.remember(outcome=outcome)

    def close(self, status: str) -> None:
        """End the MLflow run as `FINISHED` or `FAILED`, if there is one and it has not ended so before."""
        self._outbox.wait()  # for what is still on its way
        if self._said:
            self._said.close()
        if self._run.status not in (None, status):
            self._outbox.post(f"the end of the run as {status}", lambda: self._close(status), again=True)
            self._outbox.wait()

    def _close(self, status: str) -> None:
        if self._machine:
            self._machine.finish()
        if self._live:
            self._live.flush()
        if self._said:
            self._run.store.log_files(str(self._run.id), self._said.files())
        self._run.close(status)


def _tags(tree: Mapping[str, Any], results: RunResults) -> dict[str, str]:
    """Return the tags by which a run and everything below it can be found; the budget of an image is known once images are packed."""
    protect = tree["protect"]
    kind = METHODS[protect["method"]]
    tags = {"method": protect["method"], "dataset": tree["data"], "preset": tree["preset"]}
    if "pack" in results.manifests:
        size = results.manifests["pack"].counts
        tags["budget"] = str(kind.budget(protect["eps_levels"], (3, size["height"], size["width"])))
    return tags | ({"targets": protect["targets"]} if kind.targets else {})
