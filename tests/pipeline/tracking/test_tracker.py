"""The tracker, on a real SQLite database: parents, children, no log entry twice, and the replacement of redone stages."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import fs

from pipeline.config.marks import Mark, marked
from pipeline.config.schema import STAGES, RunConfig, to_tree
from pipeline.results.run_results import RunResults
from pipeline.results.summary import headline
from pipeline.results.verdict import verdict
from pipeline.shards.tables import read_table
from pipeline.stages import report
from pipeline.storage.folder import Folder
from pipeline.storage.records import digest, flatten
from pipeline.tracking.tracker import MlflowTracker, NoTracker, open_tracker
from tests import ROOT
from tests.fixtures import finished_run

ALL = (*finished_run.STAGES, "report")
VICTIMS = {f"none · {data} · resnet8 · seed {seed}" for data in ("clean", "protected") for seed in (0, 1)}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run that was never logged, beside an empty database: making one takes seconds."""
    path = tmp_path_factory.mktemp("runs") / "template"
    finished_run.write(path)
    client(Folder.open(str(path)))
    return path


@pytest.fixture(scope="module")
def tracked_run(template: Path) -> tuple[RunConfig, Folder]:
    """A run with all stages, reported and logged, in a folder with a space in its name."""
    path = template.parent / "first run"
    shutil.copytree(template, path)
    config, folder = finished_run.configuration(path), Folder.open(str(path))
    report.execute(config, folder)
    track(config, folder, *STAGES)
    return config, folder


@pytest.fixture
def copied_run(template: Path, tmp_path: Path) -> tuple[RunConfig, Folder]:
    """A copy with pack, surrogate and protect, logged, to change."""
    path = tmp_path / "copy"
    shutil.copytree(template, path, ignore=shutil.ignore_patterns("victim"))
    config, folder = finished_run.configuration(path), Folder.open(str(path))
    track(config, folder, "pack", "surrogate", "protect")
    return config, folder


def train_victims(template: Path, folder: Folder) -> None:
    """Copy the victims of the template into the run."""
    shutil.copytree(template / "victim", folder.file("victim"))


def track(config: RunConfig, folder: Folder, *stages: str, status: str = "FINISHED") -> None:
    tracker = open_tracker(config, folder)
    tracker.begin()
    for stage in stages:
        tracker.log_stage(stage, RunResults.read(folder))
    tracker.close(status)


def client(folder: Folder) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{folder.path}/mlflow.db")


def runs(folder: Folder, view: int = 1) -> tuple[Any, dict[str, Any]]:
    """Return the parent run, and its children by name; view 1 has the active runs, view 2 the deleted ones."""
    experiment = client(folder).get_experiment_by_name(folder.path.rsplit("/", 1)[-1])
    found = list(client(folder).search_runs([experiment.experiment_id], run_view_type=view))
    parents = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) <= 1
    children = {run.info.run_name: run for run in found if run not in parents}
    assert len(children) == len(found) - len(parents)
    assert view != 1 or all(run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id for run in children.values())
    return parents[0] if parents else None, children


def everything(folder: Folder) -> list[Any]:
    """Return all that the tracker holds, for comparison."""
    parent, children = runs(folder)
    lines = []
    for run in (parent, *children.values()):
        history = {name: [m.to_dictionary() for m in client(folder).get_metric_history(run.info.run_id, name)] for name in run.data.metrics}
        lines.append((run.to_dictionary(), history))
    return sorted(lines, key=str)


def artifacts(folder: Folder, run: Any, path: str | None = None) -> set[str]:
    return {entry.path for entry in client(folder).list_artifacts(run.info.run_id, path)}


def test_one_parent_holds_a_child_per_stage_and_victim(tracked_run: tuple[RunConfig, Folder]) -> None:
    config, folder = tracked_run
    parent, children = runs(folder)
    assert set(children) == {"surrogate", "protect"} | VICTIMS
    assert parent.info.run_name == "first run"
    assert {run.info.status for run in (parent, *children.values())} == {"FINISHED"}
    assert parent.data.params["protect.steps"] == str(config.protect.steps)
    assert parent.data.params["surrogate.networks"] == "resnet8"
    assert not {"None", "[]", ""} & {value for run in (parent, *children.values()) for value in run.data.params.values()}
    note = parent.data.tags["mlflow.note.content"]
    assert "PSNR" in note
    assert "--run" not in note  # a command in a line of its own would push the figures off MLflow's page
    assert {entry.dataset.name for entry in parent.inputs.dataset_inputs} == {"clean", "protected"}
    trained_on = {name: children[name].inputs.dataset_inputs[0].dataset.name for name in VICTIMS}
    assert all(data == ("clean" if "clean" in name else "protected") for name, data in trained_on.items())
    assert {"report", "victims.csv", "config.json", "release.json"} <= artifacts(folder, parent)
    of_images = {"samples.png", "extremes.png", "imperceptibility.png", "spectrum.png", "similarity.png"}
    shown = {"index.html", "accuracy.png", "classes.png", "surrogate.png"} | of_images
    assert artifacts(folder, parent, "report") == {f"report/{name}" for name in shown}
    assert artifacts(folder, children["protect"]) == of_images | {"images"}
    assert artifacts(folder, children["surrogate"]) == {"checkpoints.json"}
    assert Path(folder.path, "mlflow", parent.info.run_id, "artifacts", "report", "index.html").exists()


def test_every_run_says_where_it_comes_from_and_what_it_is(tracked_run: tuple[RunConfig, Folder]) -> None:
    _, folder = tracked_run
    parent, children = runs(folder)
    assert parent.data.tags["mlflow.user"]
    assert parent.data.tags["mlflow.source.name"] == "pipeline/run.py"
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    assert parent.data.tags.get("mlflow.source.git.commit", "") == head
    assert all(len(run.data.tags["mlflow.note.content"]) > 40 for run in children.values())
    assert len({run.data.tags["mlflow.runColor"] for run in children.values()}) == 2
    assert parent.data.tags["release_sha256"] == RunResults.read(folder).manifests["protect"].digest
    assert parent.data.tags["verdict"] == verdict(RunResults.read(folder)).label
    (clean,) = (entry.dataset for entry in parent.inputs.dataset_inputs if entry.dataset.name == "clean")
    assert json.loads(clean.source) == {"uri": "generated"}
    features = json.loads(json.loads(clean.schema)["mlflow_tensorspec"]["features"])
    assert features[0]["tensor-info"] == {"dtype": "uint8", "shape": [-1, 16, 16, 3]}
    images = artifacts(folder, children["protect"], "images")
    assert {re.split("[+%]step", name.rpartition("/")[2])[0] for name in images} == {"clean", "protected"}


def test_checkpoints_are_models_and_the_last_can_be_loaded(tracked_run: tuple[RunConfig, Folder]) -> None:
    import mlflow
    from mlflow import pytorch

    _, folder = tracked_run
    entries = RunResults.read(folder).checkpoints["resnet8"]
    models = {model.name: model for model in client(folder).search_logged_models(["1"])}
    assert models.keys() == {f"resnet8-epoch-{entry['epoch']:04d}" for entry in entries}
    for entry in entries:
        model = models[f"resnet8-epoch-{entry['epoch']:04d}"]
        assert (model.status.value, model.tags["sha256"]) == ("READY", entry["sha256"])
        assert {metric.key: metric.value for metric in model.metrics}["train_loss"] == entry["metrics"]["loss"]
    last = models[f"resnet8-epoch-{entries[-1]['epoch']:04d}"]
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{folder.path}/mlflow.db")
    try:
        loaded = pytorch.load_model(f"models:/{last.model_id}")
        signature = mlflow.models.get_model_info(f"models:/{last.model_id}").signature
    finally:
        mlflow.set_tracking_uri(before)
    stored = torch.load(folder.file(f"surrogate/{entries[-1]['file']}"), weights_only=True)
    assert stored.keys() == loaded.state_dict().keys()
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in stored.items())
    assert signature.inputs.inputs[0].shape == (-1, 3, 16, 16)


def test_every_run_can_be_found_by_its_tags(tracked_run: tuple[RunConfig, Folder]) -> None:
    config, folder = tracked_run
    parent, children = runs(folder)
    shared = {"method": "sep-fa", "targets": "shift", "budget": "8/255", "dataset": config.data, "preset": "smoke"}
    for run in (parent, *children.values()):
        assert run.data.tags.items() >= shared.items()
    own = {"stage": "run", "network": "resnet8", "countermeasure": "none", "run_folder": folder.uri}
    assert parent.data.tags.items() >= own.items()
    experiment = client(folder).get_experiment_by_name("first run")

    def names(asked: str) -> set[str]:
        return {run.info.run_name for run in client(folder).search_runs([experiment.experiment_id], asked)}

    assert names("tags.stage = 'run'") == {"first run"}
    assert names("tags.network = 'resnet8' and tags.countermeasure = 'none' and tags.data = 'protected'") == {
        f"none · protected · resnet8 · seed {seed}" for seed in (0, 1)
    }
    assert names("tags.data = 'clean' and tags.stage = 'surrogate' and tags.budget = '8/255'") == {"surrogate"}
    assert "tags.stage = 'run'" in experiment.tags["mlflow.note.content"]


def test_figures_are_those_of_the_files(tracked_run: tuple[RunConfig, Folder]) -> None:
    _, folder = tracked_run
    parent, children = runs(folder)
    known = headline(RunResults.read(folder))
    for name in (
        "clean_accuracy",
        "protected_accuracy",
        "protected_accuracy_std",
        "protected_relabelled_accuracy",
        "linf_levels",
        "psnr_db",
        "ssim",
        "changed_percent",
        "gradient_similarity",
    ):
        assert parent.data.metrics[name] == pytest.approx(known[name])
    for name in ("train_images", "test_images", "chance_accuracy", "protected_images", "protected_classes"):  # charts of one bar
        assert name not in parent.data.metrics
        assert float(parent.data.tags[name]) == pytest.approx(known[name], rel=1e-4)
    assert parent.data.metrics["protected_accuracy/resnet8/none"] == pytest.approx(known["protected_accuracy"])

    def curve(run: str, metric: str) -> list[float]:
        history = client(folder).get_metric_history(children[run].info.run_id, metric)
        assert [point.step for point in history] == list(range(len(history)))
        return [point.value for point in history]

    for row in read_table(folder, "victim/results.parquet").to_pylist():
        name = f"{row['countermeasure']} · {row['data']} · {row['network']} · seed {row['seed']}"
        assert curve(name, "test_accuracy") == row["accuracy_per_epoch"]
        assert curve(name, "train_loss") == row["loss_per_epoch"]
        assert curve(name, "loader_percent") == [100 * 0.1 / 0.4] * len(row["loss_per_epoch"])
        assert children[name].data.metrics["relabelled_accuracy"] == row["relabelled_accuracy"]
        assert "other_accuracy" not in children[name].data.metrics  # every class is protected
    epochs = RunResults.read(folder).checkpoints["resnet8"]
    assert curve("surrogate", "train_loss") == [entry["metrics"]["loss"] for entry in epochs]
    assert curve("surrogate", "lr") == [entry["metrics"]["lr"] for entry in epochs]
    assert curve("surrogate", "loader_percent") == [100 * 0.025 / 0.1] * len(epochs)


def test_networks_and_other_classes_are_logged_apart(template: Path, tmp_path: Path) -> None:
    path = tmp_path / "mixed"
    path.mkdir()
    shutil.copy(template / "mlflow.db", path)
    config, folder = finished_run.write(path, config=finished_run.mixed_configuration(path))
    track(config, folder, *finished_run.STAGES)
    parent, children = runs(folder)
    known = headline(RunResults.read(folder))
    assert {name for name in children if name.startswith("surrogate")} == {"surrogate · resnet8", "surrogate · vit-small"}
    for network, entries in RunResults.read(folder).checkpoints.items():
        child = children[f"surrogate · {network}"]
        assert child.data.tags["network"] == child.data.params["network"] == network
        assert child.data.metrics["train_loss"] == entries[-1]["metrics"]["loss"]
    for name in ("clean_other_accuracy", "protected_other_accuracy", "gradient_similarity", "network_similarity"):
        assert parent.data.metrics[name] == pytest.approx(known[name])
    assert parent.data.tags["targets"] == "random-class"
    for row in read_table(folder, "victim/results.parquet").to_pylist():
        name = f"none · {row['data']} · {row['network']} · seed 0"
        assert children[name].data.metrics["other_accuracy"] == row["other_accuracy"]


def test_a_resumed_pipeline_logs_nothing_twice_and_does_not_even_load_mlflow(tracked_run: tuple[RunConfig, Folder]) -> None:
    _, folder = tracked_run
    before = everything(folder)
    program = (
        "import sys, pathlib; from tests.fixtures import finished_run; from pipeline.tracking.tracker import open_tracker, RunResults\n"
        f"path = pathlib.Path({folder.path!r}); folder = finished_run.Folder.open(str(path))\n"
        "tracker = open_tracker(finished_run.configuration(path), folder); tracker.begin(); tracker.watch('victim')\n"
        f"for stage in {ALL!r}: tracker.log_stage(stage, RunResults.read(folder))\n"
        "tracker.close('FINISHED'); assert 'mlflow' not in sys.modules, 'loaded'"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
    assert everything(folder) == before


def test_a_pipeline_goes_on_with_the_runs_it_began(template: Path, copied_run: tuple[RunConfig, Folder]) -> None:
    config, folder = copied_run
    first, children = runs(folder)
    track(config, folder, "pack", "surrogate", "protect", "victim", status="FAILED")  # no victims have been trained
    assert runs(folder)[0].info.status == "FAILED"
    train_victims(template, folder)
    tracker = open_tracker(config, folder)
    tracker.log_stage("victim", RunResults.read(folder))
    assert runs(folder)[0].info.status == "RUNNING"
    tracker.close("FINISHED")
    parent, now = runs(folder)
    assert (parent.info.run_id, parent.info.status) == (first.info.run_id, "FINISHED")
    assert set(now) == {"surrogate", "protect"} | VICTIMS
    assert {now[name].info.run_id for name in children} == {run.info.run_id for run in children.values()}
    assert parent.data.metrics["protected_accuracy"] == pytest.approx(headline(RunResults.read(folder))["protected_accuracy"])


def test_a_stage_made_again_replaces_its_own_run_only(copied_run: tuple[RunConfig, Folder]) -> None:
    config, folder = copied_run
    parent, before = runs(folder)
    folder.child("protect").delete()
    shutil.rmtree(folder.file("surrogate"))
    finished_run.write(Path(folder.path), ("surrogate",), config)
    other = folder.read("surrogate/manifest.json").replace(b'"workers": 1', b'"workers": 2')  # as on another machine
    folder.write("surrogate/manifest.json", other)
    finished_run.write(Path(folder.path), ("protect",), config)
    track(config, folder, "pack", "surrogate", "protect")
    again, after = runs(folder)
    assert again.info.run_id == parent.info.run_id
    assert set(after) == {"surrogate", "protect"}
    assert all(after[name].info.run_id != before[name].info.run_id for name in after)
    deleted = runs(folder, view=2)[1]
    assert {run.info.run_id for run in deleted.values()} == {run.info.run_id for run in before.values()}
    assert all(run.data.tags["superseded"] == "true" for run in deleted.values())


def test_other_settings_make_a_new_parent_with_everything_that_still_holds(copied_run: tuple[RunConfig, Folder]) -> None:
    config, folder = copied_run
    first, _ = runs(folder)
    redone = replace(config, protect=replace(config.protect, steps=2, method="noise"), overwrite=True)
    finished_run.write(Path(folder.path), ("protect",), redone)
    track(redone, folder, "pack", "surrogate", "protect")
    parent, children = runs(folder)
    assert parent.info.run_id != first.info.run_id
    assert parent.data.params["protect.steps"] == "2"
    assert "targets" not in parent.data.tags  # noise has no target classes
    assert set(children) == {"surrogate", "protect"}
    assert runs(folder, view=2)[0].data.params["protect.steps"] == "4"


def test_a_renamed_run_that_goes_on_with_other_settings_keeps_its_experiment(copied_run: tuple[RunConfig, Folder]) -> None:
    config, folder = copied_run
    path = Path(folder.path).rename(Path(folder.path).with_name("renamed"))
    folder = Folder.open(str(path))
    redone = replace(config, run=str(path), protect=replace(config.protect, steps=2), overwrite=True)
    finished_run.write(path, ("protect",), redone)
    track(redone, folder, "pack", "surrogate", "protect")
    assert {experiment.name for experiment in client(folder).search_experiments()} == {"Default", "renamed"}
    parent, _ = runs(folder)
    assert (parent.info.experiment_id, parent.data.params["protect.steps"]) == ("1", "2")


def test_a_lost_database_is_begun_again_with_everything_there_is(copied_run: tuple[RunConfig, Folder]) -> None:
    config, folder = copied_run
    Path(folder.file("mlflow.db")).unlink()
    track(config, folder, "pack", "surrogate", "protect")
    assert set(runs(folder)[1]) == {"surrogate", "protect"}


def test_what_an_earlier_version_logged_gives_way(copied_run: tuple[RunConfig, Folder]) -> None:
    """It wrote a list of runs for each stage, and the address of the database."""
    config, folder = copied_run
    first, before = runs(folder)
    state = json.loads(folder.read("tracking.json"))
    stages = {name: {"digest": "x", "runs": [run["id"] for run in stage["runs"].values()]} for name, stage in state["stages"].items()}
    uri = f"sqlite:///{folder.path}/mlflow.db"
    kept = {name: state[name] for name in ("parent", "under", "tags", "identity", "status")}
    folder.write("tracking.json", json.dumps({**kept, "tracker": digest(uri), "stages": stages}).encode())
    track(config, folder, "pack", "surrogate", "protect")
    parent, children = runs(folder)
    assert parent.info.run_id != first.info.run_id
    assert set(children) == set(before)
    assert {run.info.run_id for run in runs(folder, view=2)[1].values()} == {run.info.run_id for run in before.values()}


def test_a_run_the_tracker_does_not_know_is_begun_again(template: Path, copied_run: tuple[RunConfig, Folder]) -> None:
    config, folder = copied_run
    parent, _ = runs(folder)
    client(folder).delete_run(parent.info.run_id)
    train_victims(template, folder)
    track(config, folder, "victim")
    again, children = runs(folder)
    assert again.info.run_id != parent.info.run_id
    assert {"surrogate", "protect"} | VICTIMS == set(children)


def test_what_is_not_finite_is_not_logged(copied_run: tuple[RunConfig, Folder]) -> None:
    config, folder = copied_run
    tracker = MlflowTracker(config, folder)
    parent, _ = runs(folder)
    tracker._run.store.log_metrics(parent.info.run_id, {"one": 1.0, "nan": math.nan, "inf": math.inf})
    assert {"one", "nan", "inf"} & set(runs(folder)[0].data.metrics) == {"one"}


def test_a_tracker_out_of_reach_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config, folder = finished_run.write(tmp_path / "run", ("pack",))
    (tmp_path / "file").write_text("not a folder")
    track(replace(config, tracking_uri=f"sqlite:///{tmp_path}/file/mlflow.db"), folder, "pack")
    assert "the next start will try again" in caplog.text


def test_an_object_store_needs_a_tracker_of_its_own() -> None:
    folder = Folder(fs.S3FileSystem(anonymous=True, region="us-east-1"), "bucket/run", "s3://bucket/run")
    with pytest.raises(ValueError, match="give --tracking-uri"):
        open_tracker(finished_run.configuration(Path("/nowhere")), folder)


def test_none_logs_nothing_and_does_not_even_load_mlflow(template: Path, tmp_path: Path) -> None:
    path = tmp_path / "untracked"
    shutil.copytree(template, path, ignore=shutil.ignore_patterns("mlflow*"))
    before = Folder.open(str(path)).names(recursive=True)
    program = (
        "import sys, pathlib; from dataclasses import replace; from tests.fixtures import finished_run\n"
        "from pipeline.tracking.tracker import open_tracker, RunResults\n"
        f"path = pathlib.Path({str(path)!r}); folder = finished_run.Folder.open(str(path))\n"
        "config = replace(finished_run.configuration(path), tracking_uri='none'); tracker = open_tracker(config, folder)\n"
        f"for one in (tracker, tracker.point(config, folder)):\n one.begin(), one.watch('victim')\n"
        f" for stage in {ALL!r}: one.log_stage(stage, RunResults.read(folder))\n"
        "tracker.begin_sweep(RunResults.read(folder)); tracker.log_outcome(folder, 'text')\n"
        "tracker.close('FINISHED'); assert 'mlflow' not in sys.modules, 'loaded'"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
    assert Folder.open(str(path)).names(recursive=True) == before


def test_on_an_object_store_none_needs_no_tracker() -> None:
    folder = Folder(fs.S3FileSystem(anonymous=True, region="us-east-1"), "bucket/run", "s3://bucket/run")
    assert isinstance(open_tracker(replace(finished_run.configuration(Path("/nowhere")), tracking_uri="none"), folder), NoTracker)


def test_what_only_decides_how_fast_keeps_the_runs_that_were_logged(template: Path, copied_run: tuple[RunConfig, Folder]) -> None:
    config, folder = copied_run
    parent, before = runs(folder)
    faster = replace(
        config,
        workers=3,
        memory_limit_mb=7,
        cache_gb=7,
        keep_going=True,
        surrogate=replace(config.surrogate, recorded=False),
        protect=replace(config.protect, batch_size=5, tasks_per_gpu=2),
        victim=replace(config.victim, trials_per_gpu=4, recorded=False),
    )
    other = {name: value for name, value in flatten(to_tree(faster)).items() if value != flatten(to_tree(config))[name]}
    assert other.keys() >= {*marked(RunConfig, Mark.SPEED)} - {"executor"}
    train_victims(template, folder)
    track(faster, folder, "pack", "surrogate", "protect", "victim")
    again, after = runs(folder)
    assert again.info.run_id == parent.info.run_id
    assert {after[name].info.run_id for name in before} == {run.info.run_id for run in before.values()}
    assert not set(other) & set(parent.data.params)
