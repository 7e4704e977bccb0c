"""A sweep: every point is protected and measured once in its own run folder, and shared stages stay untouched."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import run as entry
from pipeline import verify
from pipeline.config.schema import RunConfig
from pipeline.export import main as export
from pipeline.results.run_results import RunResults
from pipeline.shards.tables import read_table
from pipeline.stages import sweep
from pipeline.storage.folder import Folder
from pipeline.storage.layout import SHARED
from pipeline.storage.run import Point, open_run, point
from pipeline.storage.stage import Manifest
from pipeline.tracking.tracker import open_tracker
from tests.fixtures import finished_run, packed_run
from tests.fixtures.executors import LOCAL

NAMES = {f"steps-{steps}_checkpoints-{checkpoints}" for steps in (1, 2) for checkpoints in (1, 2)}


def go(config: RunConfig, folder: Folder, *, logged: bool = False) -> sweep.SweepResult:
    """Run the sweep as `run.py` does after packing and surrogate. Unless it has its own run in MLflow, log nothing there."""
    tracker = open_tracker(config, folder)
    try:
        for name in ("pack", "surrogate") if logged else ():
            tracker.log_stage(name, RunResults.read(folder))
        return sweep.execute(config, folder, tracker, LOCAL, RunResults.read(folder))
    finally:
        tracker.close("FINISHED")


def contents(folder: Folder) -> dict[str, tuple[bytes, int]]:
    """Return every file with its time, but neither the database nor the records of what the last start was asked for."""
    names = [name for name in folder.names(recursive=True) if not name.startswith("mlflow") and not name.endswith("config.json")]
    return {name: (folder.read(name), os.stat(folder.file(name)).st_mtime_ns) for name in names}


def shared(folder: Folder) -> dict[str, tuple[bytes, int]]:
    return {name: value for name, value in contents(folder).items() if name.split("/")[0] in SHARED}


def victims(folder: Folder, name: str) -> dict[str, Any]:
    """Return the results of a point by kind of data."""
    return {row["data"]: row for row in read_table(point(folder, name).child("victim"), "results.parquet").to_pylist()}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Folder, sweep.SweepResult, str]:
    """A sweep of two by two points, its results and its log."""
    config, folder = finished_run.write(tmp_path_factory.mktemp("runs") / "swept", SHARED)
    before = shared(folder)
    config = replace(
        config,
        sweep=("protect.steps=1,2", "protect.checkpoints=1,2"),
        protect=replace(config.protect, method="sep"),
        victim=replace(config.victim, epochs=1, seeds=(0,)),
    )
    log = Path(folder.path).parent / "log"
    handler = logging.FileHandler(log)
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.INFO)
    logging.getLogger("cluster").setLevel(logging.DEBUG)
    outcome = go(config, folder, logged=True)
    logging.getLogger("cluster").setLevel(logging.NOTSET)
    logging.getLogger().removeHandler(handler)
    assert shared(folder) == before
    return config, folder, outcome, log.read_text()


@pytest.fixture
def copied(swept: tuple[RunConfig, Folder, sweep.SweepResult, str], tmp_path: Path) -> tuple[RunConfig, Folder]:
    """A copy of that sweep, to change."""
    config, folder, _, _ = swept
    shutil.copytree(folder.path, tmp_path / "copy")
    return replace(config, run=str(tmp_path / "copy")), Folder.open(str(tmp_path / "copy"))


def test_every_point_has_results_of_its_own(swept: tuple[RunConfig, Folder, sweep.SweepResult, str]) -> None:
    _, folder, outcome, _ = swept
    assert (outcome.failed, outcome.missing) == ({}, [])
    releases = set()
    for name in NAMES:
        own = point(folder, name)
        protect = Manifest.load(own, "protect")
        settings = {"protect.steps": protect.counts["steps"], "protect.checkpoints": protect.counts["members"]}
        assert json.loads(own.read("point.json")) == settings
        assert name == "_".join(f"{field.partition('.')[2]}-{value}" for field, value in settings.items())
        assert victims(folder, name).keys() == {"clean", "protected"}
        assert name in outcome.text
        releases.add(tuple(packed_run.digests(protect)))
    assert len(releases) == len(NAMES)
    rows = read_table(folder.child("comparison"), "comparison.parquet").to_pylist()
    assert {row["run"]: row["gradients"] for row in rows} == {
        f"steps-{steps}_checkpoints-{members}": 36 * steps * members for steps in (1, 2) for members in (1, 2)
    }


def test_pack_and_surrogate_are_shared_and_not_copied(swept: tuple[RunConfig, Folder, sweep.SweepResult, str]) -> None:
    _, folder, _, _ = swept
    held = {name.split("/")[1] for name in folder.child("sweep").names(recursive=True) if name.count("/") > 1}
    assert held == {"protect", "victim", "report"}
    for stage in SHARED:
        assert point(folder, "steps-1_checkpoints-1").child(stage) == folder.child(stage)


def test_clean_victims_are_trained_once(swept: tuple[RunConfig, Folder, sweep.SweepResult, str]) -> None:
    _, folder, _, log = swept
    assert log.count("resnet8-clean-none-seed0, epoch 1 of") == 1
    assert log.count("resnet8-protected-none-seed0, epoch 1 of") == len(NAMES)
    clean = [victims(folder, name)["clean"] for name in NAMES]
    assert all(row == clean[0] for row in clean)
    losses = {victims(folder, name)["protected"]["loss_per_epoch"][0] for name in NAMES}
    assert len(losses) == len(NAMES)


def test_another_start_in_another_order_does_nothing(swept: tuple[RunConfig, Folder, sweep.SweepResult, str]) -> None:
    config, folder, outcome, _ = swept
    before = contents(folder)
    again = go(replace(config, sweep=("protect.checkpoints=2,1", "protect.steps=2,1")), folder, logged=True)
    assert again == outcome
    assert contents(folder) == before


def test_a_point_that_fails_leaves_the_others_and_is_tried_again(copied: tuple[RunConfig, Folder]) -> None:
    config, folder = copied
    broken = point(folder, "steps-1_checkpoints-2")
    shard = Manifest.load(broken, "protect").shards["train"][0].name
    whole = broken.child("protect").read(shard)
    broken.child("protect").write(shard, whole[:-1024])
    for name in ("steps-1_checkpoints-2", "steps-2_checkpoints-1"):
        point(folder, name).child("victim").delete()
    outcome = go(config, folder)
    assert list(outcome.failed) == ["steps-1_checkpoints-2"]
    assert f"{shard} was altered" in outcome.failed["steps-1_checkpoints-2"]
    assert victims(folder, "steps-2_checkpoints-1").keys() == {"clean", "protected"}
    assert "steps-1_checkpoints-2: 1 of 2 results missing: resnet8-protected-none-seed0" in outcome.text
    broken.child("protect").write(shard, whole)
    assert go(config, folder).failed == {}
    assert victims(folder, "steps-1_checkpoints-2").keys() == {"clean", "protected"}


def test_a_changed_configuration_is_named_before_any_new_point(copied: tuple[RunConfig, Folder]) -> None:
    config, folder = copied
    changed = replace(config, protect=replace(config.protect, eps_levels=4), sweep=("protect.steps=3,1", "protect.checkpoints=1"))
    with pytest.raises(ValueError, match=r"protect\.eps_levels: 8 -> 4"):
        go(changed, folder)
    assert not point(folder, "steps-3_checkpoints-1").folder.exists()


def test_points_are_audited_and_exported(
    swept: tuple[RunConfig, Folder, sweep.SweepResult, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder, _, _ = swept
    own = f"{folder.path}/sweep/steps-2_checkpoints-1"
    assert isinstance(open_run(own), Point)
    assert verify.main(["--run", own]) == 0
    assert "36 protected images" in capsys.readouterr().out
    assert export(["--run", own, "--to", str(tmp_path / "release")]) == 0
    assert len(list((tmp_path / "release").glob("*/*.png"))) == 36
    shutil.copytree(own, tmp_path / "alone" / "sweep" / "point")
    assert verify.main(["--run", str(tmp_path / "alone" / "sweep" / "point")]) == 1
    assert "reads the pack and surrogate of its run, which is not at" in capsys.readouterr().err


def test_a_point_is_not_started_as_a_run(
    swept: tuple[RunConfig, Folder, sweep.SweepResult, str], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    _, folder, _, _ = swept
    before = contents(folder)
    assert entry.main(["--preset", "smoke", "--run", f"{folder.path}/sweep/steps-2_checkpoints-1"]) == 1
    assert f"start its run, {folder.path}, with --sweep" in capfd.readouterr().err
    assert contents(folder) == before


def test_mlflow_has_points_under_the_sweep_and_what_a_run_has_under_them(swept: tuple[RunConfig, Folder, sweep.SweepResult, str]) -> None:
    from mlflow import MlflowClient

    _, folder, outcome, _ = swept
    client = MlflowClient(tracking_uri=f"sqlite:///{folder.path}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("swept").experiment_id])
    names = {run.info.run_id: run.info.run_name for run in found}
    nested = {run.info.run_id: names.get(run.data.tags.get("mlflow.parentRunId", "")) for run in found}
    children: dict[str | None, set[str]] = {}
    for run, parent in nested.items():
        children.setdefault(parent, set()).add(names[run])
    assert children[None] == {"swept"}
    assert children["swept"] == NAMES | {"surrogate"}
    for name in NAMES:
        assert children[name] == {"protect", *(f"none · {data} · resnet8 · seed 0" for data in ("clean", "protected"))}
    for run in found:
        if run.info.run_name in NAMES:
            row = victims(folder, run.info.run_name)["protected"]
            assert run.data.metrics["protected_accuracy"] == row["last_accuracy"]
            steps = int(run.data.params["protect.steps"])
            assert run.data.metrics["gradients"] == 36 * steps * int(run.data.params["protect.checkpoints"])
            assert run.data.tags["protect.steps"] == str(steps)
    (parent,) = (run for run in found if run.info.run_name == "swept")
    assert outcome.text.partition("\n\n  page")[0].strip() in parent.data.tags["mlflow.note.content"]
    shown = {entry.path for entry in client.list_artifacts(parent.info.run_id, "comparison")}
    assert shown == {f"comparison/{name}" for name in ("index.html", "accuracy.png", "cost.png", "comparison.csv")}


@pytest.mark.slow
def test_a_sweep_of_other_victims_has_its_points_under_the_new_run(copied: tuple[RunConfig, Folder]) -> None:
    """Only victims have these settings: pack and surrogate are done before, yet their runs in MLflow move with those of the points."""
    from mlflow import MlflowClient

    config, folder = copied
    client = MlflowClient(tracking_uri=f"sqlite:///{folder.path}/mlflow.db")

    def nested() -> dict[str | None, set[str]]:
        """Return the names of the runs that are not deleted, by the name of their parent."""
        found = client.search_runs([client.get_experiment_by_name("copy").experiment_id])
        names = {run.info.run_id: run.info.run_name for run in found}
        children: dict[str | None, set[str]] = {}
        for run in found:
            above = run.data.tags.get("mlflow.parentRunId")
            children.setdefault(above and names.get(above, "deleted"), set()).add(names[run.info.run_id])
        return children

    points = ("steps-1_checkpoints-1", "steps-1_checkpoints-2")
    config = replace(config, sweep=("protect.steps=1", "protect.checkpoints=1,2"))
    go(config, folder, logged=True)
    first = json.loads(folder.read("tracking.json"))["parent"]
    changed = replace(config, victim=replace(config.victim, seeds=(1,)))
    assert go(replace(changed, overwrite=True), folder, logged=True).failed == {}
    now = nested()
    assert now[None] == {"copy"}
    assert now["copy"] == {"surrogate", *points}
    for name in points:
        assert now[name] == {"protect", *(f"none · {data} · resnet8 · seed 1" for data in ("clean", "protected"))}
    kept = json.loads(folder.read("tracking.json"))["parent"]
    assert kept != first
    assert go(replace(changed, keep_going=True), folder, logged=True).failed == {}
    assert json.loads(folder.read("tracking.json"))["parent"] == kept
    assert nested() == now
