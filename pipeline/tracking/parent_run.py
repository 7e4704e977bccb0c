"""The MLflow run of a run folder, with a child for each thing that was trained or crafted.

Which MLflow runs these are lies in `tracking.json` in the run folder, together with the digest of every stage that was logged. A resumed
pipeline therefore goes on with its MLflow runs, and logs nothing twice.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.results.run_results import RunResults
from pipeline.storage.layout import TRACKING
from pipeline.storage.records import digest, to_json
from pipeline.storage.run import Run
from pipeline.tracking.description import OF_EXPERIMENT
from pipeline.tracking.mlflow_store import Store

log = logging.getLogger(__name__)

ABOVE = "mlflow.parentRunId"
DATA_SETS = {"pack": "clean", "protect": "protected"}  # names of the shards of a stage


@dataclass(frozen=True)
class Identity:
    """What an MLflow run is about.

    Attributes:
        digest: of the settings and images. MLflow cannot change parameters and data sets, so another digest needs another MLflow run.
        own: tags of the run alone.
        shared: tags of the run and of every child, to filter by.
        absent: tags that neither has, because the points of a sweep have one each.
        params: the settings, without those that the points have.
    """

    digest: str
    own: Mapping[str, str]
    shared: Mapping[str, str]
    absent: frozenset[str]
    params: Mapping[str, Any]

    @property
    def tags_digest(self) -> str:
        """Digest of all tags: another sweep of the same run changes them."""
        return digest([dict(self.own), dict(self.shared), sorted(self.absent)])


class ParentRun:
    """The MLflow run of one run folder; that of a point of a sweep lies below that of the sweep, `above`."""

    def __init__(self, store: Store, folder: Run, experiment: str, above: ParentRun | None = None, *, forget: bool = False) -> None:
        """Find what was logged before, unless there is a reason to `forget` it. Nothing is logged yet."""
        self.store, self.folder, self.above = store, folder, above
        self.name = folder.path.rstrip("/").rsplit("/", 1)[-1]
        self.experiment, self._shared = experiment, dict[str, str]()
        self._state: dict[str, Any] = {} if forget else self._remembered()

    def _remembered(self) -> dict[str, Any]:
        """Return what `tracking.json` says, if it speaks of this tracker."""
        if not self.folder.exists(TRACKING):
            return {}
        try:
            state: dict[str, Any] = json.loads(self.folder.read(TRACKING))
        except ValueError:
            return {}
        return state if state.get("tracker") == digest(self.store.uri) else {}

    def remember(self, **changes: Any) -> None:
        """Write down what has changed."""
        self._state |= changes
        self.folder.write(TRACKING, to_json(self._state))

    @property
    def id(self) -> str | None:
        """Id of the MLflow run; None before anything was logged."""
        known: str | None = self._state.get("parent")
        return known

    @property
    def outcome(self) -> str | None:
        """Digest of the comparison of the points, as it was logged; None before that."""
        known: str | None = self._state.get("outcome")
        return known

    def logged(self, stage: str) -> str | None:
        """Return the digest of a stage as it was logged; None if it was not, or below another sweep's run."""
        known: str | None = self._state.get("stages", {}).get(stage, {}).get("digest")
        return known if self._is_in_place else None

    @property
    def _is_in_place(self) -> bool:
        return self.above is None or self._state.get("under") == self.above.id

    def open(self, about: Identity) -> None:
        """Have an MLflow run about this: the one that was begun, with its tags up to date, or a new one in its place."""
        self._shared = dict(about.shared)
        if self.id and self._state["identity"] == about.digest and self._is_in_place and self.store.is_active(self.id):
            self._tag_again(about)
            return
        if self.id:
            log.info("tracking: a new MLflow run replaces the earlier one, which was deleted or had other settings or images")
            self.store.supersede([*self._children, self.id])
        parent = self._create(self.name, {**about.own, **about.shared}, time.time())
        self.store.log_params(parent, about.params)
        self._state = {"tracker": digest(self.store.uri), "under": self.above and self.above.id, "tags": about.tags_digest}
        self.remember(parent=parent, identity=about.digest, status="RUNNING", stages={})

    def _tag_again(self, about: Identity) -> None:
        """Bring the tags up to date where the points of another sweep, or a release of the run itself, have come since."""
        if self._state.get("tags") == about.tags_digest:
            return
        assert self.id
        for run in (self.id, *self._children):
            self.store.set_tags(run, about.shared, absent=about.absent)
        self.store.set_tags(self.id, about.own)
        self.store.log_params(self.id, about.params)
        self.remember(tags=about.tags_digest)

    def _create(self, name: str, tags: Mapping[str, Any], start: float) -> str:
        """Create a run in the experiment, which is made if need be; return its id."""
        return self.store.create(self.store.experiment(self.experiment, OF_EXPERIMENT), name, tags, start)

    def resume(self) -> None:
        """Say that the MLflow run goes on, if it had ended."""
        if self._state["status"] != "RUNNING":
            self.store.client.update_run(self.id, status="RUNNING")
            self.remember(status="RUNNING")

    @property
    def _children(self) -> list[str]:
        return [run for stage in self._state.get("stages", {}).values() for run in stage["runs"]]

    def begin_stage(self, stage: str) -> None:
        """Make room for a stage: MLflow runs of an earlier making of it are superseded."""
        self.resume()
        self.store.supersede(self._state["stages"].get(stage, {}).get("runs", []))
        self._state["stages"][stage] = {"digest": None, "runs": []}
        self.remember()

    def finish_stage(self, stage: str, logged: str | None) -> None:
        """Remember that a stage was logged whole."""
        self._state["stages"][stage]["digest"] = logged
        self.remember()

    def child(self, stage: str, name: str, tags: Mapping[str, Any], params: Mapping[str, Any], seconds: float = 0) -> str:
        """Create a run below this one that has taken so long, and remember it at once; return its id."""
        run = self._create(name, {ABOVE: self.id, "stage": stage, **self._shared, **tags}, time.time() - seconds)
        self._state["stages"][stage]["runs"].append(run)
        self.remember()
        self.store.log_params(run, params)
        return run

    def log_input(self, run: str, results: RunResults, stage: str, context: str) -> None:
        """Log the shards of a stage as a data set of an MLflow run; `context` says what for."""
        self.store.log_input(run, DATA_SETS[stage], results.manifests[stage], self.folder.child(stage), context)

    def close(self, status: str) -> None:
        """End the MLflow run as `FINISHED` or `FAILED`, if there is one and it has not ended so before."""
        if self._state.get("status", status) == status:
            return
        assert self.id
        if self.store.is_active(self.id):
            self.store.client.set_terminated(self.id, status)
            self.remember(status=status)
