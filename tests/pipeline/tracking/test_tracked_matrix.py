"""A matrix of victims in MLflow: countermeasures with characters that it refuses in names, and accuracies of each class."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.pages import confusion_figures
from pipeline.results.run_results import RunResults
from pipeline.storage.folder import Folder
from pipeline.tracking.tracker import open_tracker
from tests.fixtures import matrix_run
from tests.fixtures.drawn import decoded

COMPOSED, SHARE = "grayscale+jpeg-10", "clean-only-10"


@dataclass(frozen=True)
class Logged:
    """A matrix of two seeds, and its runs in MLflow."""

    folder: Folder
    client: Any
    parent: Any
    victims: list[Any]
    said: str


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Logged:
    from mlflow import MlflowClient

    said: list[str] = []
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(matrix_run, "NAMES", ("none", COMPOSED, SHARE))
        changed.setattr("pipeline.tracking.tracker.log.error", lambda message, *arguments: said.append(message % arguments))
        config, folder = matrix_run.write(tmp_path_factory.mktemp("matrix") / "run", networks=1, seeds=2)
        tracker = open_tracker(config, folder)
        for stage in ("victim", "report"):
            tracker.log_stage(stage, RunResults.read(folder))
        tracker.close("FINISHED")
    client = MlflowClient(tracking_uri=f"sqlite:///{folder.path}/mlflow.db")
    runs: list[Any] = client.search_runs([client.get_experiment_by_name("run").experiment_id])
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    return Logged(folder, client, parent, [run for run in runs if run.data.tags["stage"] == "victim"], "".join(said))


def test_countermeasures_one_after_the_other_are_logged_as_any_other(logged: Logged) -> None:
    assert not logged.said
    for pair in RunResults.read(logged.folder).pairs:
        name = {"none": "none", COMPOSED: "grayscale_jpeg-10", SHARE: SHARE}[pair.clean.countermeasure]
        for cell in pair.trained:
            assert logged.parent.data.metrics[f"{cell.data}_accuracy/resnet18/{name}"] == cell.last.mean
    assert {run.data.tags["countermeasure"] for run in logged.victims} == {"none", COMPOSED, SHARE}
    trained_on = {
        (run.data.tags["countermeasure"], run.data.tags["data"]): run.inputs.dataset_inputs[0].dataset.name for run in logged.victims
    }
    assert {cell for cell, name in trained_on.items() if name == trained_on["none", "protected"]} == {
        ("none", "protected"),
        (COMPOSED, "protected"),
    }  # of clean images alone, neither
    assert "report" in {entry.path for entry in logged.client.list_artifacts(logged.parent.info.run_id)}


def test_every_victim_has_a_table_of_its_classes_and_one_of_each_kind_a_picture(logged: Logged, tmp_path: Path) -> None:
    assert len(logged.victims) == 12
    for run in logged.victims:
        there = {entry.path for entry in logged.client.list_artifacts(run.info.run_id)}
        assert there == {"classes.csv"} | ({"classes.png"} if run.data.tags["seed"] == "0" else set())
        text = Path(logged.client.download_artifacts(run.info.run_id, "classes.csv", str(tmp_path))).read_text()
        rows = list(csv.reader(text.splitlines()))
        right = round(run.data.metrics["last_accuracy"])
        wrong = (100 - right) // 2
        assert rows == [
            ["class", "test images", "accuracy", "taken for diagonal", "taken for horizontal", "taken for vertical"],
            *(
                [name, str(right + 2 * wrong), str(round(100 * right / (right + 2 * wrong), 2)), *(str(n) for n in counts)]
                for name, counts in zip(
                    ("diagonal", "horizontal", "vertical"),
                    ([right, wrong, wrong], [wrong, right, wrong], [wrong, wrong, right]),
                    strict=True,
                )
            ),
        ]
    picture = next(run for run in logged.victims if run.data.tags["seed"] == "0")
    png = Path(logged.client.download_artifacts(picture.info.run_id, "classes.png", str(tmp_path))).read_bytes()
    assert min(decoded(png).shape[:2]) > 300


def test_a_class_without_test_images_has_no_accuracy_and_any_name_fits() -> None:
    made = confusion_figures.table([[3, 1, 0], [0, 0, 0], [0, 0, 2]], ['a "b", c', "é", "="]).decode()
    rows = list(csv.reader(made.splitlines()))
    assert rows[0][3:] == ['taken for a "b", c', "taken for é", "taken for ="]
    assert [row[:3] for row in rows[1:]] == [['a "b", c', "4", "75.0"], ["é", "0", ""], ["=", "2", "100.0"]]
