"""MLflow as the driver uses it: through explicit run ids, loaded when first needed, within MLflow's limits."""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.storage.folder import Folder
from pipeline.storage.records import digest
from pipeline.storage.stage import Manifest

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "GIT_PYTHON_REFRESH": "quiet",
}
MOST_METRICS, MOST_PARAMS, LONGEST_VALUE, LONGEST_DIGEST = 1000, 100, 6000, 36  # MLflow's limits
NOTE = "mlflow.note.content"  # the tag that the UI shows as the description, in Markdown


class Store:
    """One tracking server or database."""

    def __init__(self, uri: str) -> None:
        """Nothing is opened yet."""
        self.uri = uri

    @cached_property
    def client(self) -> Any:
        """MLflow's own client."""
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient  # takes seconds to load

        logging.getLogger("alembic").setLevel(logging.WARNING)
        return MlflowClient(tracking_uri=self.uri)

    @staticmethod
    def errors() -> tuple[type[Exception], ...]:
        """Return the exceptions raised where the tracker, its database or its artifacts cannot be reached."""
        from mlflow.exceptions import MlflowException

        return MlflowException, OSError

    def is_active(self, run: str) -> bool:
        """Return whether the tracker knows a run that nobody has deleted."""
        from mlflow.exceptions import MlflowException

        try:
            return bool(self.client.get_run(run).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def experiment(self, name: str, note: str) -> str:
        """Return the id of an experiment, made with this description if need be; artifacts of a SQLite database lie beside it."""
        location = None
        if self.uri.startswith("sqlite:///"):
            beside = Path(self.uri.removeprefix("sqlite:///")).absolute().parent
            beside.mkdir(parents=True, exist_ok=True)
            location = (beside / "mlflow").as_uri()
        known = self.client.get_experiment_by_name(name)
        if known is None:
            # The kind decides what the UI shows first: training runs, not chat traces.
            return str(self.client.create_experiment(name, location, {"mlflow.experimentKind": "custom_model_development", NOTE: note}))
        if known.lifecycle_stage != "active":
            self.client.restore_experiment(known.experiment_id)
        return str(known.experiment_id)

    def create(self, experiment: str, name: str, tags: Mapping[str, Any], start: float) -> str:
        """Create a run that began at `start`, in seconds; return its id."""
        described = {key: str(value) for key, value in tags.items()} | {"mlflow.source.name": "pipeline/run.py"}
        run = self.client.create_run(experiment, start_time=int(1000 * start), tags=described, run_name=name)
        return str(run.info.run_id)

    def set_tags(self, run: str, tags: Mapping[str, Any], absent: Collection[str] = ()) -> None:
        """Set tags, over earlier values, and delete the `absent` ones."""
        for name, value in tags.items():
            self.client.set_tag(run, name, str(value))
        for name in absent and self.client.get_run(run).data.tags.keys() & set(absent):
            self.client.delete_tag(run, name)

    def supersede(self, runs: Iterable[str]) -> None:
        """Tag and delete the runs that still exist; MLflow can restore deleted runs."""
        for run in filter(self.is_active, runs):
            self.client.set_tag(run, "superseded", "true")
            self.client.delete_run(run)

    def log_metrics(self, run: str, *steps: Mapping[str, Any]) -> None:
        """Log metrics of step 0, 1, ...; values that are not finite are left out, because the tracker would make numbers of them."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        finite = [(step, name, value) for step, values in enumerate(steps) for name, value in values.items() if math.isfinite(value)]
        metrics = [Metric(name, float(value), now, step) for step, name, value in finite]
        for start in range(0, len(metrics), MOST_METRICS):
            self.client.log_batch(run, metrics=metrics[start : start + MOST_METRICS])

    def log_params(self, run: str, values: Mapping[str, Any]) -> None:
        """Log parameters, which cannot be changed later."""
        from mlflow.entities import Param

        params = [Param(name, str(value)[:LONGEST_VALUE]) for name, value in values.items()]
        for start in range(0, len(params), MOST_PARAMS):
            self.client.log_batch(run, params=params[start : start + MOST_PARAMS])

    def log_input(self, run: str, name: str, manifest: Manifest, folder: Folder, context: str) -> None:
        """Log the shards of a stage as a data set of a run, with their digest; `context` says what for."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        counts = {split: sum(shard.count for shard in shards) for split, shards in manifest.shards.items()}
        kind = "local" if folder.is_local else folder.uri.split(":")[0]
        content = digest(manifest.as_dict()["shards"])[:LONGEST_DIGEST]
        data = Dataset(name, content, kind, json.dumps({"uri": folder.uri}), profile=json.dumps(counts))
        self.client.log_inputs(run, [DatasetInput(data, [InputTag("mlflow.data.context", context)])])

    def log_files(self, run: str, files: Mapping[str, bytes]) -> None:
        """Log artifacts by their path."""
        with tempfile.TemporaryDirectory() as place:
            for name, data in files.items():
                path = Path(place, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            self.client.log_artifacts(run, place)
