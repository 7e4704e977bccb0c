"""The log of a running stage for MLflow: each epoch when it ends, and how fast images are protected."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

from pipeline.config.schema import RunConfig
from pipeline.results.waiting import waiting_percent
from pipeline.storage.layout import trial_name
from pipeline.storage.stage import read_started
from pipeline.tracking import children
from pipeline.tracking.mlflow_store import MetricsAtStep
from pipeline.tracking.parent_run import Child, ParentRun

FLUSH_SECONDS = 5.0  # between two messages about short epochs or small shards
OF_AN_EPOCH = {
    **{"loss": "train_loss", "accuracy": "train_accuracy", "lr": "lr", "seconds": "epoch_seconds"},
    **{name: name for name in ("train_loss", "test_accuracy", "noise_error")},  # of a trial
}


def of_an_epoch(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return an epoch under MLflow's names, with the share of its time for which it waited for images, if that is known."""
    values = {new: metrics[old] for old, new in OF_AN_EPOCH.items() if old in metrics}
    return values | ({"loader_percent": waiting_percent([metrics])} if "waiting_seconds" in metrics else {})


class Live:
    """The watcher of one stage. All of it runs in the tracker's thread, but for `begun` and `told`, which return at once."""

    def __init__(self, stage: str, config: RunConfig, parent: ParentRun, prepare: Callable[[], None]) -> None:
        """Log nothing before something happens: the stage may be done already.

        Args:
            stage: name of the stage.
            config: of this start.
            parent: the run that the children go below.
            prepare: has that run be about what the stage makes.
        """
        self._stage, self._config, self._parent, self._prepare = stage, config, parent, prepare
        self._children: dict[str, tuple[Child, str]] = {}  # what -> child and its id
        self._steps: dict[str, int] = {}  # id -> the next step
        self._points: dict[str, list[MetricsAtStep]] = {}
        self._flushed = 0.0
        self._images, self._pace = 0, (0, time.time())  # protected so far; and at the last point, with its time

    def begun(self, what: str) -> None:
        """Note that work has begun."""
        if self._stage != "pack":
            self._parent.store.load()
            self._post(self._begin, what, time.time())

    def told(self, what: str, metrics: Mapping[str, Any]) -> None:
        """Note what an epoch or a piece of work has brought."""
        if self._stage != "pack":
            self._post(self._log, what, dict(metrics), time.time())

    def flush(self) -> None:
        """Hand over all points that are still here; in the tracker's thread."""
        points, self._points, self._flushed = self._points, {}, time.time()
        for run, own in points.items():
            self._parent.store.log_points(run, own)

    def _post(self, job: Callable[..., None], *arguments: Any) -> None:
        self._parent.store.outbox.post(self._stage, lambda: job(*arguments))

    def _begin(self, what: str, now: float) -> None:
        if self._stage in ("surrogate", "protect"):
            self._child(what, now)

    def _log(self, what: str, metrics: dict[str, Any], now: float) -> None:
        if "units" in metrics:
            if what == "protect":
                self._log_pace(metrics["units"], now)
        elif known := self._child(what, now - metrics.get("seconds", 0)):
            self._add(known[1], MetricsAtStep(metrics["epoch"], now, of_an_epoch(metrics)))

    def _log_pace(self, images: int, now: float) -> None:
        """Add a point to the rates, not more often than anybody looks."""
        known = self._child("protect", now)
        self._images += images
        before, then = self._pace
        if not known or now - then < FLUSH_SECONDS:
            return
        rate = (self._images - before) / (now - then)
        protect = self._config.protect
        each = protect.gradients_per_image(protect.members(len(self._config.surrogate.networks))) if protect.kind.surrogate else 0
        self._pace = (self._images, now)
        values = {"images_per_second": rate} | ({"gradients_per_second": rate * each} if each else {})
        self._points.setdefault(known[1], []).append(MetricsAtStep(self._images, now, values))
        self.flush()

    def _add(self, run: str, point: MetricsAtStep) -> None:
        """Keep a point, and hand over all of them if the last time was long ago; an epoch that is repeated counts once."""
        if point.step < self._steps[run]:
            return
        self._steps[run] = point.step + 1
        self._points.setdefault(run, []).append(point)
        if time.time() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def _child(self, what: str, start: float) -> tuple[Child, str] | None:
        """Return the child for this work, opened if need be; None for work that has none."""
        what = "protect" if self._stage == "protect" else what  # all that the stage does is one child
        if what not in self._children:
            if not self._children:
                self._prepare()
            about = self._about(what)
            if about is None:
                return None
            run = self._parent.child(about, start)
            metric = {"surrogate": "train_loss", "protect": "noise_error", "victim": "test_accuracy"}[self._stage]
            self._children[what] = about, run
            self._steps[run] = len(self._parent.store.curve(run, metric))
        return self._children[what]

    def _about(self, what: str) -> Child | None:
        settings = read_started(self._parent.folder, self._stage)[self._stage]
        if self._stage == "surrogate":
            return children.surrogate(what, len(settings["networks"]) > 1, settings)
        if self._stage == "protect":
            return children.protect(settings)
        every = product(*(settings[f"{name}s"] for name in ("network", "countermeasure", "seed")), ("clean", "protected"))
        named = {trial_name(n, d, c, s): children.victim(n, d, c, s, settings) for n, c, s, d in every}
        return named.get(what)
