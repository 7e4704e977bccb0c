"""MLflow: one parent run for the pipeline, a child for the surrogate, the protection and each victim.

Only the driver talks to the tracker, through explicit run ids. They lie in `tracking.json` in the run folder together with
the digest of every stage that was logged, so a resumed pipeline goes on with its runs and logs nothing twice.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import tempfile
import textwrap
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from pyarrow import csv

from pipeline import report, results
from pipeline.config import RunConfig
from pipeline.results import Finished
from pipeline.shards import read_table
from pipeline.stage import MANIFEST, Manifest, digest, flatten, to_json
from pipeline.storage import Folder

log = logging.getLogger(__name__)

STATE = "tracking.json"
DATABASE = "mlflow.db"
SHARED_EXPERIMENT = "sep"  # with a tracking URI of one's own; the run folder's own database has one named after the run
OF_A_CALL = ("config", "sweep", "stages", "workers", "overwrite", "memory_limit_mb")  # may differ between starts of one and the same run
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "GIT_PYTHON_REFRESH": "quiet",
}
OF_AN_EPOCH = {"loss": "train_loss", "accuracy": "train_accuracy", "lr": "lr", "seconds": "seconds"}
MEASURED = ("clean", "protected", "protected_relabelled", "clean_other", "protected_other")
HEADLINE = {
    "pack": ("train_images", "test_images", "quarantined", "chance_accuracy"),
    "protect": ("linf_levels", "psnr_db", "protected_images", "protected_classes", "gradient_similarity", "network_similarity"),
    "victim": tuple(f"{name}_accuracy{std}" for name in MEASURED for std in ("", "_std")),
}
MOST_METRICS, MOST_PARAMS, LONGEST_VALUE, LONGEST_DIGEST = 1000, 100, 6000, 36  # MLflow's limits


class Tracker:
    """The tracker of one run. Loads MLflow only when there is something to log, and never costs the run its results."""

    def __init__(self, config: RunConfig, folder: Folder) -> None:
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
        self._uri = config.tracking_uri or f"sqlite:///{folder.file(DATABASE)}"
        self._state = self._remembered()

    def log_stage(self, name: str) -> None:
        """Log a finished stage unless it was logged already; what was logged of an earlier making of it is superseded.

        A tracker out of reach is an error in the log, not the end of the run: the next start logs what is missing.
        """
        if not self._folder.exists(f"{name}/{MANIFEST}"):
            return
        manifest = Manifest.load(self._folder, name)
        if self._logged(name) == manifest.digest:
            return
        found = results.finished(self._folder)
        try:
            self._open(found)
            for stage in [*found, *(["report"] if name == "report" else [])]:  # a new parent run gets everything there is
                if self._logged(stage) != Manifest.load(self._folder, stage).digest:
                    self._log(stage, found)
        except self._mlflow_error() as error:
            log.error("tracking: %s was not logged, the next start will try again (%s)", name, error)

    def close(self, status: str) -> None:
        """End the parent run as `FINISHED` or `FAILED`, if there is one and it has not ended so before."""
        if self._state.get("status", status) == status:
            return
        try:
            if self._is_active(self._state["parent"]):
                self._client.set_terminated(self._state["parent"], status)
                self._remember(status=status)
        except self._mlflow_error() as error:
            log.error("tracking: the run could not be marked as %s (%s)", status, error)

    def _remembered(self) -> dict[str, Any]:
        """What `tracking.json` says, if it speaks of this tracker and the database is still there."""
        lost = not self._config.tracking_uri and not self._folder.exists(DATABASE)
        if lost or not self._folder.exists(STATE):
            return {}
        try:
            state: dict[str, Any] = json.loads(self._folder.read(STATE))
        except ValueError:
            return {}
        return state if state.get("tracker") == digest(self._uri) else {}

    def _remember(self, **changes: Any) -> None:
        self._state |= changes
        self._folder.write(STATE, to_json(self._state))

    def _logged(self, stage: str) -> Any:
        """Digest of the stage as it was logged; None if it was not."""
        return self._state.get("stages", {}).get(stage, {}).get("digest")

    @cached_property
    def _client(self) -> Any:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient  # takes seconds to load

        logging.getLogger("alembic").setLevel(logging.WARNING)
        return MlflowClient(tracking_uri=self._uri)

    @staticmethod
    def _mlflow_error() -> tuple[type[Exception], ...]:
        """What is raised where the tracker, its database or its artifacts cannot be reached."""
        from mlflow.exceptions import MlflowException

        return MlflowException, OSError

    def _is_active(self, run: str) -> bool:
        """Whether the tracker knows a run, and nobody has deleted it."""
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._client.get_run(run).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _open(self, found: Finished) -> None:
        """Have a running parent with the right parameters.

        Parameters and data sets of a run cannot be changed, so a pipeline redone with others gets a new parent.
        """
        tree = {name: value for name, value in results.configuration(self._config, found).items() if name not in OF_A_CALL}
        identity = digest([tree, found["pack"].digest])
        there = "parent" in self._state and self._is_active(self._state["parent"])
        if there and self._state["identity"] == identity:
            if self._state["status"] != "RUNNING":
                self._client.update_run(self._state["parent"], status="RUNNING")
                self._remember(status="RUNNING")
            return
        if self._state:
            log.info("tracking: a new MLflow run replaces the earlier one, which was deleted or had other settings or images")
            self._supersede([*(run for stage in self._state["stages"].values() for run in stage["runs"]), self._state["parent"]])
        tags = {name: tree["protect"][name] for name in ("method", "targets", "eps_levels")} | {"run_folder": self._folder.uri}
        tags |= {name: tree[name] for name in ("data", "preset")} | {"network": ", ".join(tree["victim"]["networks"])}
        parent = self._create(self._name, tags, time.time())
        self._log_params(parent, flatten(tree))
        self._state = {}
        self._remember(tracker=digest(self._uri), parent=parent, identity=identity, status="RUNNING", stages={})

    def _experiment(self) -> str:
        """Id of the experiment, made if need be; artifacts of a SQLite database lie beside it."""
        name = SHARED_EXPERIMENT if self._config.tracking_uri else self._name
        location = None
        if self._uri.startswith("sqlite:///"):
            beside = Path(self._uri.removeprefix("sqlite:///")).absolute().parent
            beside.mkdir(parents=True, exist_ok=True)
            location = (beside / "mlflow").as_uri()
        known = self._client.get_experiment_by_name(name)
        if known is None:
            kind = {"mlflow.experimentKind": "custom_model_development"}  # how the UI greets: training runs, not chat traces
            return str(self._client.create_experiment(name, location, kind))
        if known.lifecycle_stage != "active":
            self._client.restore_experiment(known.experiment_id)
        return str(known.experiment_id)

    def _create(self, name: str, tags: Mapping[str, Any], start: float) -> str:
        described = {key: str(value) for key, value in tags.items()} | {"mlflow.source.name": "pipeline/run.py"}
        run = self._client.create_run(self._experiment(), start_time=int(1000 * start), tags=described, run_name=name)
        return str(run.info.run_id)

    def _child(self, stage: str, name: str, tags: Mapping[str, Any], params: Mapping[str, Any], seconds: float = 0) -> str:
        """A run under the parent that has taken so long, remembered at once."""
        run = self._create(name, {"mlflow.parentRunId": self._state["parent"], "stage": stage, **tags}, time.time() - seconds)
        self._state["stages"][stage]["runs"].append(run)
        self._remember()
        self._log_params(run, params)
        return run

    def _supersede(self, runs: list[str]) -> None:
        """Tag and delete runs that are still there; MLflow keeps deleted runs restorable."""
        for run in filter(self._is_active, runs):
            self._client.set_tag(run, "superseded", "true")
            self._client.delete_run(run)

    def _log(self, stage: str, found: Finished) -> None:
        """Log one stage, in place of what was logged of it before."""
        self._supersede(self._state["stages"].get(stage, {}).get("runs", []))
        self._state["stages"][stage] = {"digest": None, "runs": []}
        self._remember()
        getattr(self, f"_{stage}")(found)
        parent, known = self._state["parent"], results.headline(self._folder)
        self._log_metrics(parent, {name: known[name] for name in HEADLINE.get(stage, ()) if name in known})
        figures = textwrap.dedent(report.summary(self._config, self._folder)).strip()
        self._client.set_tag(parent, "mlflow.note.content", f"```\n{figures}\n```")
        self._state["stages"][stage]["digest"] = Manifest.load(self._folder, stage).digest
        self._remember()

    def _pack(self, found: Finished) -> None:
        self._log_input(self._state["parent"], found["pack"], "clean")

    def _surrogate(self, found: Finished) -> None:
        manifest, networks = found["surrogate"], results.checkpoints(self._folder)
        for network, entries in networks.items():  # each a child of its own, so that the same metrics stand beside one another
            epochs = [entry["metrics"] for entry in entries]
            name = "surrogate" if len(networks) == 1 else f"surrogate · {network}"
            of = {"network": network}
            run = self._child("surrogate", name, of, manifest.asked["surrogate"] | of, sum(epoch["seconds"] for epoch in epochs))
            self._log_input(run, found["pack"], "training")
            self._log_metrics(run, *[{new: epoch[name] for name, new in OF_AN_EPOCH.items()} for epoch in epochs])
            self._log_files(run, {"checkpoints.json": to_json({"checkpoints": entries})})
            self._client.set_terminated(run)

    def _protect(self, found: Finished) -> None:
        manifest = found["protect"]
        run = self._child("protect", "protect", {}, manifest.asked["protect"], manifest.seconds)
        self._log_input(run, found["pack"], "clean")
        self._log_input(self._state["parent"], manifest, "protected")
        measured = {name: value for name, value in manifest.counts.items() if name not in manifest.asked["protect"]} | manifest.timing
        self._log_metrics(run, {name: value for name, value in measured.items() if isinstance(value, int | float)})
        drawn = report.pictures(self._folder, {stage: found[stage] for stage in ("pack", "protect")})
        self._log_files(run, {f"{name}.png": png for name, png in drawn.items()})
        self._client.set_terminated(run)

    def _victim(self, found: Finished) -> None:
        for row in results.trials(self._folder, found):
            cell = {name: row[name] for name in ("network", "data", "countermeasure", "seed")}
            training = {name: value for name, value in found["victim"].asked["victim"].items() if not isinstance(value, list)}
            name = f"{row['network']} · {row['data']} · {row['countermeasure']} · seed {row['seed']}"
            run = self._child("victim", name, cell, training | cell)
            self._log_input(run, found["pack" if row["data"] == "clean" else "protect"], "training")
            curves = zip(row["accuracy_per_epoch"], row["loss_per_epoch"], strict=True)
            self._log_metrics(run, *[{"test_accuracy": accuracy, "train_loss": loss} for accuracy, loss in curves])
            self._log_metrics(run, {name: value for name, value in row.items() if name.endswith("_accuracy") and value is not None})
            self._client.set_terminated(run)
        table = read_table(self._folder.child("victim"), "results.parquet")
        stream = io.BytesIO()
        csv.write_csv(table.drop_columns([name for name in table.column_names if name.endswith("_per_epoch")]), stream)
        self._log_files(self._state["parent"], {"victims.csv": stream.getvalue()})

    def _report(self, found: Finished) -> None:
        shown = [f"report/{name}" for name in self._folder.child("report").names() if name.endswith((".html", ".png"))]
        self._log_files(self._state["parent"], {name: self._folder.read(name) for name in shown})

    def _log_metrics(self, run: str, *steps: Mapping[str, Any]) -> None:
        """Metrics of step 0, 1, ...; what is not finite is left out, because the tracker would make it a number."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        finite = [(step, name, value) for step, values in enumerate(steps) for name, value in values.items() if math.isfinite(value)]
        metrics = [Metric(name, float(value), now, step) for step, name, value in finite]
        for start in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(run, metrics=metrics[start : start + MOST_METRICS])

    def _log_params(self, run: str, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)[:LONGEST_VALUE]) for name, value in values.items()]
        for start in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(run, params=params[start : start + MOST_PARAMS])

    def _log_input(self, run: str, manifest: Manifest, context: str) -> None:
        """The shards of a stage as a data set of a run."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        folder = self._folder.child(manifest.stage)
        counts = {split: sum(shard.count for shard in shards) for split, shards in manifest.shards.items()}
        kind = "local" if folder.is_local else folder.uri.split(":")[0]
        content = digest(manifest.as_dict()["shards"])[:LONGEST_DIGEST]
        data = Dataset(manifest.stage, content, kind, json.dumps({"uri": folder.uri}), profile=json.dumps(counts))
        self._client.log_inputs(run, [DatasetInput(data, [InputTag("mlflow.data.context", context)])])

    def _log_files(self, run: str, files: Mapping[str, bytes]) -> None:
        """Artifacts by their path."""
        with tempfile.TemporaryDirectory() as place:
            for name, data in files.items():
                path = Path(place, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            self._client.log_artifacts(run, place)
