"""The MLflow run of a run folder, with a child for each thing that is trained or crafted.

Which MLflow runs these are lies in `tracking.json` in the run folder, together with the digest of what was logged whole. A resumed
pipeline therefore goes on with its MLflow runs, and logs nothing twice.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.results.mlflow_address import CLASSIC, how_to_look
from pipeline.storage.layout import DATABASE, TRACKING
from pipeline.storage.records import digest, to_json
from pipeline.storage.run import Run
from pipeline.tracking import own_database
from pipeline.tracking.description import of_experiment
from pipeline.tracking.mlflow_store import NOTE, MetricsAtStep, Store
from pipeline.tracking.saved_view import saved_view

log = logging.getLogger(__name__)

ABOVE = "mlflow.parentRunId"


@dataclass(frozen=True)
class Identity:
    """The subject of an MLflow run.

    Attributes:
        digest: of the settings. MLflow cannot change parameters and data sets, so another digest needs another MLflow run.
        images: digest of the packed images, for the same reason; None before they are packed.
        own: tags of the run alone.
        shared: tags of the run and of every child, to filter by.
        absent: tags that neither has, because the points of a sweep have one each.
        params: the settings, without those that the points have.
    """

    digest: str
    images: str | None
    own: Mapping[str, str]
    shared: Mapping[str, str]
    absent: frozenset[str]
    params: Mapping[str, Any]

    @property
    def tags_digest(self) -> str:
        """Digest of all tags: another sweep of the same run changes them."""
        return digest([dict(self.own), dict(self.shared), sorted(self.absent)])


@dataclass(frozen=True)
class Child:
    """Something that is trained or crafted, as MLflow shows it."""

    stage: str
    name: str
    tags: Mapping[str, Any]
    params: Mapping[str, Any]
    note: str


def experiment_at(uri: str) -> str:
    """Return the name of the experiment of all runs that share a tracker; in Databricks a name is a path in the workspace."""
    return "/Shared/sep" if uri.startswith("databricks") else "sep"


class ParentRun:
    """The MLflow run of one run folder; that of a point of a sweep lies below that of the sweep, `above`."""

    def __init__(self, store: Store, folder: Run, experiment: str, above: ParentRun | None = None, *, forget: bool = False) -> None:
        """Find what was logged before, unless it is to be forgotten (`forget`). Nothing is logged yet."""
        self.store, self.folder, self.above = store, folder, above
        self.name = _last(folder)
        self.experiment, self._shared = experiment, dict[str, str]()
        self._running = dict[str, str]()  # children that this start has opened, id -> stage
        self._state: dict[str, Any] = {} if forget else self._remembered()

    @classmethod
    def of(cls, folder: Run, uri: str | None) -> ParentRun:
        """Return the MLflow run of a run folder at a tracker, or in its own database, with the experiment that has its name."""
        if uri:
            return cls(Store(uri), folder, experiment_at(uri))
        return cls(own_database.store_in(folder.path), folder, _last(folder), forget=not folder.exists(DATABASE))

    @property
    def _tracker(self) -> str:
        """The mark of this tracker among others; a run's own database is the same wherever the run is moved."""
        return digest("own" if self.store.artifacts else self.store.uri)

    def _remembered(self) -> dict[str, Any]:
        """Return what `tracking.json` says, if it speaks of this tracker."""
        if not self.folder.exists(TRACKING):
            return {}
        try:
            state: dict[str, Any] = json.loads(self.folder.read(TRACKING))
        except ValueError:
            return {}
        if state.get("tracker") not in (self._tracker, digest(self.store.uri)):
            return {}
        return state if "experiment" in state else _of_before(state)

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
    def experiment_id(self) -> str:
        """Id of the experiment of an open run."""
        return str(self._state["experiment"])

    @property
    def page(self) -> str:
        """The address of an open run's page, after the server."""
        return f"#/experiments/{self.experiment_id}/runs/{self.id}?{CLASSIC}"

    @property
    def place(self) -> str:
        """The place to look at an open run, in words."""
        own = (self.above or self).folder.uri if self.store.artifacts else None
        return how_to_look(self.store.uri, self.experiment_id, self.experiment, own)

    @property
    def status(self) -> str | None:
        """Status of the MLflow run as it was last set; None before anything was logged."""
        known: str | None = self._state.get("status")
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

    def is_about(self, about: Identity) -> bool:
        """Return whether the MLflow run that was begun is about this, as far as is known before the images are packed."""
        same = self.id is not None and self._state["identity"] == about.digest and self._is_in_place
        return same and (about.images is None or self._state["images"] in (None, about.images))

    def open(self, about: Identity) -> None:
        """Have an MLflow run about this: the one that was begun, with its tags up to date, or a new one in its place."""
        self._shared = dict(about.shared)
        if self.is_about(about) and self.store.is_active(str(self.id)):
            self._tag_again(about)
            return
        if self.id:
            log.info("tracking: a new MLflow run replaces the earlier one, which was deleted or had other settings or images")
            self.store.supersede([*self._children, self.id])
        experiment = self.above.experiment_id if self.above else self._experiment()
        parent = self.store.create(experiment, self.name, {**about.own, **about.shared}, time.time())
        self.store.log_params(parent, about.params)
        self._running.clear()
        self._state = {"tracker": self._tracker, "experiment": experiment, "under": self.above and self.above.id, "tags": about.tags_digest}
        self._state |= {} if self.store.artifacts else {"uri": self.store.uri}  # for commands that come later
        self.remember(parent=parent, identity=about.digest, images=about.images, status="RUNNING", stages={})

    def _experiment(self) -> str:
        """Return the id of the experiment, made if need be, with its description and its view."""
        experiment = self.store.experiment(self.experiment, saved_view())
        self.store.client.set_experiment_tag(experiment, NOTE, of_experiment(experiment))
        return experiment

    def _tag_again(self, about: Identity) -> None:
        """Bring the tags up to date where the points of another sweep, or a release of the run itself, have come since."""
        if about.images and not self._state["images"]:
            self.remember(images=about.images)
        if self._state.get("tags") == about.tags_digest:
            return
        assert self.id
        for run in (self.id, *self._children):
            self.store.set_tags(run, about.shared, absent=about.absent)
        self.store.set_tags(self.id, about.own)
        self.store.log_params(self.id, about.params)
        self.remember(tags=about.tags_digest)

    def resume(self) -> None:
        """Say that the MLflow run goes on, if it had ended."""
        if self._state["status"] != "RUNNING":
            self.store.client.update_run(self.id, status="RUNNING")
            self.remember(status="RUNNING")

    def _stage(self, stage: str) -> dict[str, Any]:
        found: dict[str, Any] = self._state["stages"].setdefault(stage, {"digest": None, "runs": {}})
        return found

    @property
    def _children(self) -> list[str]:
        return [run["id"] for stage in self._state.get("stages", {}).values() for run in stage["runs"].values()]

    def finish_stage(self, stage: str, logged: str | None, names: Collection[str]) -> None:
        """Remember that a stage was logged, with children of these names; others are superseded, but for those that have not ended."""
        runs = self._stage(stage)["runs"]
        earlier = [name for name in runs.keys() - set(names) if runs[name]["id"] not in self._running]
        self.store.supersede(runs.pop(name)["id"] for name in earlier)
        self._stage(stage)["digest"] = logged
        self.remember()

    def child(self, about: Child, start: float) -> str:
        """Return the id of the run below this one that is about this, and not logged whole: one that was begun, or a new one."""
        self.resume()
        runs = self._stage(about.stage)["runs"]
        known = runs.get(about.name)
        if known and known["id"] in self._running:
            return str(known["id"])
        if known and not known["whole"] and self.store.is_active(known["id"]):
            self.store.client.update_run(known["id"], status="RUNNING")
            run = str(known["id"])
        else:
            if known:
                self.store.supersede([known["id"]])
            tags = {ABOVE: self.id, "stage": about.stage, NOTE: about.note, **self._shared, **about.tags}
            run = self.store.create(self.experiment_id, about.name, tags, start)
            self._stage(about.stage)["digest"] = None  # it is made again
            runs[about.name] = {"id": run, "whole": None}
            self.remember()
            self.store.log_params(run, about.params)
        self._running[run] = about.stage
        return run

    def is_whole(self, about: Child, content: str) -> bool:
        """Return whether a child was logged whole, with this content (a digest)."""
        known = self._stage(about.stage)["runs"].get(about.name)
        return bool(known and known["whole"] == content)

    def trained(self, about: Child, points: Sequence[MetricsAtStep], metric: str, start: float) -> str:
        """Return the id of a child that has this curve, whether it was logged live, in part, or not at all.

        Args:
            about: the child.
            points: one for each epoch.
            metric: of all points; where it was logged with other values, the child is of an earlier making.
            start: when the training began, in seconds.
        """
        run = self.child(about, start)
        there = [point.values[metric] for point in self.store.curve(run, metric)]
        values = [point.values[metric] for point in points]
        if there != values[: len(there)]:
            self._stage(about.stage)["runs"].pop(about.name)
            self._running.pop(run)
            self.store.supersede([run])
            run, there = self.child(about, start), []
        self.store.log_points(run, points[len(there) :])
        return run

    def end_child(self, about: Child, content: str, when: float | None = None) -> None:
        """End a child that was logged whole, with this content (a digest)."""
        known = self._stage(about.stage)["runs"][about.name]
        known["whole"] = content
        self._running.pop(known["id"], None)
        self.store.end(known["id"], when=when)

    def close(self, status: str) -> None:
        """End the MLflow run as `FINISHED` or `FAILED`, if there is one and it has not ended so before; children that run have failed."""
        if self.status in (None, status):
            return
        assert self.id
        if self.store.is_active(self.id):
            for run in self._running:
                self.store.end(run, "FAILED")
            self._running.clear()
            self.store.end(self.id, status)
            self.remember(status=status)


def _last(folder: Run) -> str:
    return folder.path.rstrip("/").rsplit("/", 1)[-1]


def _of_before(state: dict[str, Any]) -> dict[str, Any]:
    """Return what an earlier version wrote down, about nothing that today's runs are: so its runs are superseded."""
    stages = {
        name: {"digest": None, "runs": {run: {"id": run, "whole": None} for run in stage["runs"]}}
        for name, stage in state.get("stages", {}).items()
    }
    return {**state, "identity": None, "images": None, "experiment": None, "stages": stages}
