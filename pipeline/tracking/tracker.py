"""MLflow: one parent run for the pipeline, a child for the surrogate, the protection and each victim.

Only the driver talks to the tracker, through explicit run ids. They lie in `tracking.json` in the run folder together with
the digest of every stage that was logged, so a resumed pipeline goes on with its runs and logs nothing twice.
"""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Collection, Mapping
from typing import Any

import pyarrow as pa
from pyarrow import csv

from pipeline.config.schema import RunConfig
from pipeline.pages.gallery import draw
from pipeline.results import run_results
from pipeline.results.run_results import Manifests
from pipeline.results.summary import headline
from pipeline.storage.layout import CHECKPOINTS, DATABASE, MANIFEST, TRACKING
from pipeline.storage.records import digest, flatten, to_json
from pipeline.storage.run import Run
from pipeline.storage.stage import Manifest
from pipeline.tracking.description import OF_EXPERIMENT, describe
from pipeline.tracking.mlflow_store import NOTE, Store
from sep.countermeasures.registry import trained_as
from sep.methods.registry import METHODS

log = logging.getLogger(__name__)

SHARED_EXPERIMENT = "sep"  # with a tracking URI of one's own; the run folder's own database has one named after the run
# What may differ between starts of one and the same run:
OF_A_CALL = ("config", "add", "sweep", "stages", "workers", "keep_going", "overwrite", "memory_limit_mb")
OF_AN_EPOCH = {"loss": "train_loss", "accuracy": "train_accuracy", "lr": "lr", "seconds": "seconds"}
MEASURED = ("clean", "protected", "protected_relabelled", "clean_other", "protected_other")
VISIBLE = ("psnr_db", "ssim", "changed_percent")
DATA_SETS = {"pack": "clean", "protect": "protected"}  # what the shards of a stage are called
FOLLOWS_FROM = {  # tags, and the settings that decide them
    "method": {"protect.method"},
    "budget": {"protect.method", "protect.eps_levels"},
    "targets": {"protect.method", "protect.targets"},
}
HEADLINE = {
    "pack": ("train_images", "test_images", "quarantined", "chance_accuracy"),
    "protect": ("linf_levels", *VISIBLE, "protected_images", "protected_classes", "gradient_similarity", "network_similarity"),
    "victim": tuple(f"{name}_accuracy{std}" for name in MEASURED for std in ("", "_std")),
}


class Tracker:
    """The tracker of one run. Loads MLflow only when there is something to log, and never costs the run its results."""

    def __init__(self, config: RunConfig, folder: Run) -> None:
        """Find what was logged before.

        Raises:
            ValueError: the run lies on an object store, where no SQLite database can be, and no tracking URI is given.
        """
        if not config.tracking_uri and not folder.is_local:
            raise ValueError(
                f"a run at {folder.uri} cannot hold its own MLflow database: give --tracking-uri, an MLflow server "
                "(http://host:5000) or a database (sqlite:////absolute/path.db)"
            )
        self._config, self._folder, self._name = config, folder, folder.path.rstrip("/").rsplit("/", 1)[-1]
        self._store = Store(config.tracking_uri or f"sqlite:///{folder.file(DATABASE)}")
        self._tags: dict[str, Any] = {}  # of the parent and every child, to filter by
        self._state = self._remembered()

    def log_stage(self, name: str) -> None:
        """Log a stage unless it was logged already; what was logged of an earlier making of it is superseded.

        Logged is a stage that has finished, and of victims of which some failed, the others. A tracker out of reach is an error in the
        log, not the end of the run: the next start logs what is missing.
        """
        there = self._digest(name)
        if there and self._logged(name) != there:
            self._log_missing(name)

    def _digest(self, stage: str) -> str | None:
        """Of what there is of a stage; None where there is nothing to log."""
        if self._folder.child(stage).exists(MANIFEST):
            return Manifest.load(self._folder, stage).digest
        unfinished = run_results.trained(self._folder, run_results.finished(self._folder)).unfinished if stage == "victim" else {}
        return digest(unfinished) if unfinished else None

    def _log_missing(self, name: str) -> None:
        """Log every stage that was not logged; `name` is the one that this is about."""
        found = run_results.finished(self._folder)
        unfinished = ["victim"] if run_results.trained(self._folder, found).missing else []
        try:
            self._open(found)
            for stage in [*found, *unfinished, *(["report"] if name == "report" else [])]:  # a new parent run gets everything there is
                if self._logged(stage) != self._digest(stage):
                    self._log(stage, found)
        except self._store.errors() as error:
            log.error("tracking: %s was not logged, the next start will try again (%s)", name, error)

    def close(self, status: str) -> None:
        """End the parent run as `FINISHED` or `FAILED`, if there is one and it has not ended so before."""
        if self._state.get("status", status) == status:
            return
        try:
            if self._store.is_active(self._state["parent"]):
                self._store.client.set_terminated(self._state["parent"], status)
                self._remember(status=status)
        except self._store.errors() as error:
            log.error("tracking: the run could not be marked as %s (%s)", status, error)

    def _remembered(self) -> dict[str, Any]:
        """What `tracking.json` says, if it speaks of this tracker and the database is still there."""
        lost = not self._config.tracking_uri and not self._folder.exists(DATABASE)
        if lost or not self._folder.exists(TRACKING):
            return {}
        try:
            state: dict[str, Any] = json.loads(self._folder.read(TRACKING))
        except ValueError:
            return {}
        return state if state.get("tracker") == digest(self._store.uri) else {}

    def _remember(self, **changes: Any) -> None:
        self._state |= changes
        self._folder.write(TRACKING, to_json(self._state))

    def _logged(self, stage: str) -> Any:
        """Digest of the stage as it was logged; None if it was not."""
        return self._state.get("stages", {}).get(stage, {}).get("digest")

    def _asked(self, found: Manifests) -> dict[str, Any]:
        """The tree of settings that the parent has as parameters."""
        tree = run_results.configuration(self._config, found, run_results.trained(self._folder, found))
        del tree["victim"]["trials_per_gpu"]  # which decides how fast, and may differ as well
        return {name: value for name, value in tree.items() if name not in OF_A_CALL}

    def _identity(self, found: Manifests) -> str:
        """By which a parent is known as that of these settings and images."""
        return digest([self._asked(found), found["pack"].digest])

    def _of_points(self, found: Manifests) -> Collection[str]:
        """Settings that the run has in its points, each with a value of its own, and not itself."""
        return ()

    def _open(self, found: Manifests) -> None:
        """Have a running parent with the right parameters.

        Parameters and data sets of a run cannot be changed, so a pipeline redone with others gets a new parent.
        """
        tree, identity, others = self._asked(found), self._identity(found), self._of_points(found)
        self._tags = _tags(tree, found, others)
        params = {name: value for name, value in flatten(tree).items() if name not in others}
        there = "parent" in self._state and self._store.is_active(self._state["parent"])
        if there and self._state["identity"] == identity:
            if self._state["status"] != "RUNNING":
                self._store.client.update_run(self._state["parent"], status="RUNNING")
                self._remember(status="RUNNING")
            if self._state.get("of_points") and not others:  # begun for a sweep, it has a release of its own now
                self._store.set_tags(self._state["parent"], self._tags)
                self._store.log_params(self._state["parent"], params)
                self._remember(of_points=[])
            return
        if self._state:
            log.info("tracking: a new MLflow run replaces the earlier one, which was deleted or had other settings or images")
            self._store.supersede([*(run for stage in self._state["stages"].values() for run in stage["runs"]), self._state["parent"]])
        tags = {"stage": "run", "run_folder": self._folder.uri, **self._tags}
        tags |= {name: ", ".join(tree["victim"][f"{name}s"]) for name in ("network", "countermeasure")}
        parent = self._create(self._name, tags, time.time())
        self._store.log_params(parent, params)
        self._state = {"of_points": list(others)}
        self._remember(tracker=digest(self._store.uri), parent=parent, identity=identity, status="RUNNING", stages={})

    def _create(self, name: str, tags: Mapping[str, Any], start: float) -> str:
        """A run in the experiment, which is made if need be."""
        experiment = SHARED_EXPERIMENT if self._config.tracking_uri else self._name
        return self._store.create(self._store.experiment(experiment, OF_EXPERIMENT), name, tags, start)

    def _child(self, stage: str, name: str, tags: Mapping[str, Any], params: Mapping[str, Any], seconds: float = 0) -> str:
        """A run under the parent that has taken so long, remembered at once."""
        of_child = {"mlflow.parentRunId": self._state["parent"], "stage": stage, **self._tags, **tags}
        run = self._create(name, of_child, time.time() - seconds)
        self._state["stages"][stage]["runs"].append(run)
        self._remember()
        self._store.log_params(run, params)
        return run

    def _log(self, stage: str, found: Manifests) -> None:
        """Log one stage, in place of what was logged of it before."""
        self._store.supersede(self._state["stages"].get(stage, {}).get("runs", []))
        self._state["stages"][stage] = {"digest": None, "runs": []}
        self._remember()
        getattr(self, f"_{stage}")(found)
        parent, known = self._state["parent"], headline(self._folder)
        self._store.log_metrics(parent, {name: known[name] for name in HEADLINE.get(stage, ()) if name in known})
        if stage == "victim":  # the same names in every run, so that runs chart side by side
            there = run_results.trained(self._folder, found)
            cells = [cell for pair in run_results.pairs(there.rows) for cell in pair.trained]
            names = [f"{cell.data}_accuracy/{cell.network}/{cell.countermeasure.replace('+', '_')}" for cell in cells]  # MLflow takes no +
            self._store.log_metrics(parent, {name: cell.last.mean for name, cell in zip(names, cells, strict=True)})
        self._store.client.set_tag(parent, NOTE, describe(self._config, self._folder))
        self._state["stages"][stage]["digest"] = self._digest(stage)
        self._remember()

    def _log_input(self, run: str, manifest: Manifest, context: str) -> None:
        self._store.log_input(run, DATA_SETS[manifest.stage], manifest, self._folder.child(manifest.stage), context)

    def _pack(self, found: Manifests) -> None:
        self._log_input(self._state["parent"], found["pack"], "clean")

    def _surrogate(self, found: Manifests) -> None:
        manifest, networks = found["surrogate"], run_results.checkpoints(self._folder)
        for network, entries in networks.items():  # each a child of its own, so that the same metrics stand beside one another
            epochs = [entry["metrics"] for entry in entries]
            name = "surrogate" if len(networks) == 1 else f"surrogate · {network}"
            of, settings = {"network": network}, manifest.asked["surrogate"]
            run = self._child("surrogate", name, of | {"data": "clean"}, settings | of, sum(epoch["seconds"] for epoch in epochs))
            self._log_input(run, found["pack"], "training")
            self._store.log_metrics(run, *[{new: epoch[name] for name, new in OF_AN_EPOCH.items()} for epoch in epochs])
            self._store.log_files(run, {CHECKPOINTS: to_json({"checkpoints": entries})})
            self._store.client.set_terminated(run)

    def _protect(self, found: Manifests) -> None:
        manifest = found["protect"]
        run = self._child("protect", "protect", {"data": "protected"}, manifest.asked["protect"], manifest.seconds)
        self._log_input(run, found["pack"], "clean")
        self._log_input(self._state["parent"], manifest, "protected")
        measured = {name: value for name, value in manifest.counts.items() if name not in manifest.asked["protect"]} | manifest.timing
        measured |= {name: value for name, value in headline(self._folder).items() if name in VISIBLE}
        self._store.log_metrics(run, {name: value for name, value in measured.items() if isinstance(value, int | float)})
        drawn = draw(self._folder, {stage: found[stage] for stage in ("pack", "protect")})
        self._store.log_files(run, {f"{name}.png": png for name, png in drawn.items()})
        self._store.client.set_terminated(run)

    def _victim(self, found: Manifests) -> None:
        there = run_results.trained(self._folder, found)
        from pipeline.pages import confusion_figures  # matplotlib takes seconds to load

        training = {name: value for name, value in there.asked["victim"].items() if not isinstance(value, list)}
        names, drawn = found["pack"].counts["classes"], set[tuple[str, ...]]()
        for row in there.rows:
            cell = {name: row[name] for name in ("network", "data", "countermeasure", "seed")}
            # What differs most comes first, because the UI cuts names short.
            name = f"{row['countermeasure']} · {row['data']} · {row['network']} · seed {row['seed']}"
            run = self._child("victim", name, cell, training | cell)
            _, data = trained_as(row["countermeasure"], row["data"])
            self._log_input(run, found["pack" if data == "clean" else "protect"], "training")
            curves = zip(row["accuracy_per_epoch"], row["loss_per_epoch"], strict=True)
            self._store.log_metrics(run, *[{"test_accuracy": accuracy, "train_loss": loss} for accuracy, loss in curves])
            self._store.log_metrics(run, {name: value for name, value in row.items() if isinstance(value, float)})
            counts = run_results.trial_confusion(self._folder, **cell)
            files = {"classes.csv": confusion_figures.table(counts, names)}
            # Half a second each, in this process: one for the first seed, which the others look like, and their tables have the figures.
            if (like := (row["network"], row["data"], row["countermeasure"])) not in drawn:
                files["classes.png"] = confusion_figures.picture(counts, names, f"trained on {data} images, seed {row['seed']}")
                drawn.add(like)
            self._store.log_files(run, files)
            self._store.client.set_terminated(run)
        plain = [{name: value for name, value in row.items() if not isinstance(value, list)} for row in there.rows]
        stream = io.BytesIO()
        csv.write_csv(pa.Table.from_pylist(plain), stream)
        self._store.log_files(self._state["parent"], {"victims.csv": stream.getvalue()})

    def _report(self, found: Manifests) -> None:
        shown = [f"report/{name}" for name in self._folder.child("report").names() if name.endswith((".html", ".png"))]
        self._store.log_files(self._state["parent"], {name: self._folder.read(name) for name in shown})


def _tags(tree: Mapping[str, Any], found: Manifests, others: Collection[str]) -> dict[str, Any]:
    """By which a run and everything below it can be found; none that follows from the `others`, which are settings of its points."""
    protect, size = tree["protect"], found["pack"].counts
    kind = METHODS[protect["method"]]
    allowed = kind.budget(protect["eps_levels"], (3, size["height"], size["width"]))
    tags = {"method": protect["method"], "budget": str(allowed), "dataset": tree["data"], "preset": tree["preset"]}
    tags |= {"targets": protect["targets"]} if kind.targets else {}
    return {name: value for name, value in tags.items() if not FOLLOWS_FROM.get(name, set()) & set(others)}
