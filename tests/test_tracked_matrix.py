"""A matrix of victims in MLflow, which refuses some of the characters that countermeasures are named with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline import results
from pipeline.tracking import Tracker
from tests import matrix_run

COMPOSED, SHARE = "grayscale+jpeg-10", "clean-only-10"


def test_countermeasures_one_after_the_other_are_logged_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setattr(matrix_run, "NAMES", ("none", COMPOSED, SHARE))
    config, folder = matrix_run.write(tmp_path / "run", networks=1, seeds=1)
    tracker = Tracker(config, folder)
    for stage in ("victim", "report"):
        tracker.log_stage(stage)
    tracker.close("FINISHED")
    assert "was not logged" not in caplog.text
    client = MlflowClient(tracking_uri=f"sqlite:///{folder.path}/mlflow.db")
    runs: list[Any] = client.search_runs([client.get_experiment_by_name("run").experiment_id])
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    for pair in results.pairs(results.trials(folder, results.finished(folder))):
        name = {"none": "none", COMPOSED: "grayscale_jpeg-10", SHARE: SHARE}[pair.clean.countermeasure]
        for cell in (pair.clean, pair.protected):
            assert parent.data.metrics[f"{cell.data}_accuracy/resnet18/{name}"] == cell.last.mean
    assert {run.data.tags["countermeasure"] for run in runs if run.data.tags["stage"] == "victim"} == {"none", COMPOSED, SHARE}
    trained_on = {
        (run.data.tags["countermeasure"], run.data.tags["data"]): run.inputs.dataset_inputs[0].dataset.name
        for run in runs
        if run.data.tags["stage"] == "victim"
    }
    assert {cell for cell, name in trained_on.items() if name == trained_on["none", "protected"]} == {
        ("none", "protected"),
        (COMPOSED, "protected"),
    }  # of clean images alone, neither
    assert "report" in {entry.path for entry in client.list_artifacts(parent.info.run_id)}
