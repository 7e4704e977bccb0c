"""MLflow as the driver uses it: through explicit run ids, loaded when first needed, within MLflow's limits."""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.tracking.outbox import Outbox

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "GIT_PYTHON_REFRESH": "quiet",
}
MOST_METRICS, MOST_PARAMS, LONGEST_VALUE, LONGEST_DIGEST = 1000, 100, 6000, 36  # MLflow's limits
NOTE = "mlflow.note.content"  # the tag that the UI shows as the description, in Markdown


@dataclass(frozen=True)
class MetricsAtStep:
    """The values of some metrics at one step, at a time in seconds."""

    step: int
    time: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class DataSet:
    """A data set as MLflow shows it: where it comes from, what a row looks like, how much it holds."""

    name: str
    digest: str
    kind: str  # of the source: local, s3, ...
    uri: str
    shape: tuple[int, int, int]  # of an image: height, width, channels
    profile: Mapping[str, int]


def _mlflow() -> Any:
    """Load MLflow, which takes seconds, and keep it quiet."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import mlflow

    for noisy in ("alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    return mlflow


class Store:
    """One tracking server or database. What it does raises whatever MLflow, its database or its storage raise."""

    def __init__(self, uri: str, artifacts: str | None = None) -> None:
        """Nothing is opened yet.

        Args:
            uri: of the server or database.
            artifacts: URI of the artifacts; where the tracker says, if not given.
        """
        self.uri, self.artifacts, self.outbox = uri, artifacts, Outbox(uri)
        self._loaded = False

    @cached_property
    def _client(self) -> Any:
        return _mlflow().MlflowClient(tracking_uri=self.uri)  # which opens a database, in the tracker's thread

    def load(self) -> None:
        """Load MLflow in this thread: two threads that load the same libraries may each find them half loaded."""
        if self.outbox.lost or self._loaded:
            return
        self._loaded = True
        try:
            _mlflow()
        except Exception as error:
            self.outbox.failed("anything", error)

    @property
    def client(self) -> Any:
        """MLflow's own client. Whoever asks for it has had an answer to what was asked before."""
        self.outbox.answered()
        return self._client

    def is_active(self, run: str) -> bool:
        """Return whether the tracker knows a run that nobody has deleted."""
        from mlflow.exceptions import MlflowException

        try:
            return bool(self.client.get_run(run).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def experiment(self, name: str, tags: Mapping[str, str]) -> str:
        """Return the id of an experiment that has these tags, made if need be; that of a run which was renamed is renamed, too."""
        known = self.client.get_experiment_by_name(name)
        if known is None and self.artifacts:  # a run's own database, which has a single one beside MLflow's empty default
            known = next((other for other in self.client.search_experiments() if other.artifact_location == self.artifacts), None)
            if known:
                self.client.rename_experiment(known.experiment_id, name)
        if known is None:
            # The kind decides what the UI shows first: training runs, not chat traces.
            return str(self.client.create_experiment(name, self._location(), {"mlflow.experimentKind": "custom_model_development", **tags}))
        if known.lifecycle_stage != "active":
            self.client.restore_experiment(known.experiment_id)
        for key, value in tags.items():
            if known.tags.get(key) != value:
                self.client.set_experiment_tag(known.experiment_id, key, value)
        return str(known.experiment_id)

    def _location(self) -> str | None:
        """Return where the artifacts of a new experiment lie; those of a SQLite database lie beside it."""
        if self.artifacts is None and self.uri.startswith("sqlite:///"):
            beside = Path(self.uri.removeprefix("sqlite:///")).absolute().parent
            beside.mkdir(parents=True, exist_ok=True)
            return (beside / "mlflow").as_uri()
        return self.artifacts

    def create(self, experiment: str, name: str, tags: Mapping[str, Any], start: float) -> str:
        """Create a run that began at `start`, in seconds; return its id."""
        described = {key: str(value) for key, value in tags.items()}
        run = self.client.create_run(experiment, start_time=int(1000 * start), tags=described, run_name=name)
        return str(run.info.run_id)

    def end(self, run: str, status: str = "FINISHED", when: float | None = None) -> None:
        """End a run, now or at that time in seconds."""
        self.client.set_terminated(run, status, None if when is None else int(1000 * when))

    def set_tags(self, run: str, tags: Mapping[str, Any], absent: Collection[str] = ()) -> None:
        """Set tags, over earlier values, and delete the `absent` ones."""
        from mlflow.entities import RunTag

        self.client.log_batch(run, tags=[RunTag(name, str(value)) for name, value in tags.items()])
        for name in absent and self.client.get_run(run).data.tags.keys() & set(absent):
            self.client.delete_tag(run, name)

    def supersede(self, runs: Iterable[str]) -> None:
        """Tag and delete the runs that still exist; MLflow can restore deleted runs."""
        for run in filter(self.is_active, runs):
            self.client.set_tag(run, "superseded", "true")
            self.client.delete_run(run)

    def log_points(self, run: str, points: Iterable[MetricsAtStep]) -> None:
        """Log metrics; values that are not finite are left out, because the tracker would make numbers of them."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, float(value), round(1000 * point.time), point.step)
            for point in points
            for name, value in point.values.items()
            if math.isfinite(value)
        ]
        for start in range(0, len(metrics), MOST_METRICS):
            self.client.log_batch(run, metrics=metrics[start : start + MOST_METRICS])

    def log_metrics(self, run: str, values: Mapping[str, float]) -> None:
        """Log metrics that have no steps."""
        self.log_points(run, [MetricsAtStep(0, time.time(), values)])

    def curve(self, run: str, metric: str) -> list[MetricsAtStep]:
        """Return the values of a metric, from step 0 on."""
        points = sorted(self.client.get_metric_history(run, metric), key=lambda point: point.step)
        return [MetricsAtStep(point.step, point.timestamp / 1000, {metric: point.value}) for point in points]

    def log_params(self, run: str, values: Mapping[str, Any]) -> None:
        """Log parameters, which cannot be changed later."""
        from mlflow.entities import Param

        params = [Param(name, str(value)[:LONGEST_VALUE]) for name, value in values.items()]
        for start in range(0, len(params), MOST_PARAMS):
            self.client.log_batch(run, params=params[start : start + MOST_PARAMS])

    def log_input(self, run: str, data: DataSet, context: str) -> None:
        """Log a data set of a run; `context` says what for."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        images = {"name": "image", "type": "tensor", "tensor-info": {"dtype": "uint8", "shape": [-1, *data.shape]}}
        labels = {"name": "label", "type": "tensor", "tensor-info": {"dtype": "int64", "shape": [-1]}}
        schema = json.dumps({"mlflow_tensorspec": {"features": json.dumps([images]), "targets": json.dumps([labels])}})
        content, source, profile = data.digest[:LONGEST_DIGEST], json.dumps({"uri": data.uri}), json.dumps(data.profile)
        logged = Dataset(data.name, content, data.kind, source, schema, profile)
        self.client.log_inputs(run, [DatasetInput(logged, [InputTag("mlflow.data.context", context)])])

    def log_files(self, run: str, files: Mapping[str, bytes]) -> None:
        """Log artifacts by their path."""
        with tempfile.TemporaryDirectory() as place:
            for name, data in files.items():
                path = Path(place, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            self.client.log_artifacts(run, place)

    def log_images(self, run: str, key: str, images: Sequence[Any]) -> None:
        """Log `(H, W, 3)` uint8 images under one key, which the UI shows as a series of steps."""
        for step, image in enumerate(images):
            self.client.log_image(run, image, key=key, step=step, synchronous=True)

    def models(self, run: str) -> set[int]:
        """Return the steps that a run has models of."""
        outputs = self.client.get_run(run).outputs
        return {output.step for output in outputs.model_outputs} if outputs else set()

    def log_model(
        self,
        experiment: str,
        run: str,
        name: str,
        tags: Mapping[str, Any],
        figures: MetricsAtStep,
        folder: Path | None = None,
    ) -> None:
        """Log a model of a run; without a `folder` in MLflow's format it lies elsewhere, and its tags say where.

        Its figures are those of the run at one step: MLflow keeps points that agree in step, time and value once.
        """
        from mlflow.entities import LoggedModelOutput, Metric

        described = {key: str(value) for key, value in tags.items()} | ({} if folder else {"mlflow.model.isExternal": "true"})
        model = self.client.create_logged_model(experiment, name, run, described, model_type="surrogate").model_id
        finite = {key: float(value) for key, value in figures.values.items() if math.isfinite(value)}
        when = round(1000 * figures.time)
        metrics = [Metric(key, value, when, figures.step, model_id=model, run_id=run) for key, value in finite.items()]
        self.client.log_batch(run, metrics=metrics)
        if folder:
            self.client.log_model_artifacts(model, str(folder))
        self.client.finalize_logged_model(model, "READY")
        self.client.log_outputs(run, [LoggedModelOutput(model, figures.step)])

    @staticmethod
    def save_network(
        network: Any, folder: Path, takes: Mapping[str, Sequence[int]], gives: Mapping[str, Sequence[int]], packages: Sequence[str]
    ) -> None:
        """Save a network in MLflow's format, with a signature of float tensors of these shapes."""
        import numpy as np
        from mlflow import pytorch
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        def schema(tensors: Mapping[str, Sequence[int]]) -> Any:
            return Schema([TensorSpec(np.dtype("float32"), tuple(shape), name) for name, shape in tensors.items()])

        signature = ModelSignature(inputs=schema(takes), outputs=schema(gives))
        pytorch.save_model(network, str(folder), signature=signature, pip_requirements=list(packages), serialization_format="pickle")

    @staticmethod
    def commit_of(folder: str) -> str | None:
        """Return the commit of the git repository that a folder lies in, if there is one."""
        from mlflow.utils.git_utils import get_git_commit

        found: str | None = get_git_commit(folder)
        return found

    def watch_machine(self, run: str) -> Any:
        """Return a monitor that logs what this machine does in a run until its `finish()`; None without psutil."""
        if find_spec("psutil") is None:
            return None
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(run, resume_logging=True, tracking_uri=self.uri)
        monitor.start()
        return monitor
