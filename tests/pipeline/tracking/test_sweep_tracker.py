"""A sweep in MLflow: its own run names the swept settings, and holds no values that only points have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.schema import RunConfig
from pipeline.config.sweep_grid import grid
from pipeline.results.run_results import RunResults
from pipeline.storage.folder import Folder
from pipeline.storage.run import begin
from pipeline.tracking.protocol import Tracker
from pipeline.tracking.tracker import open_tracker
from tests.fixtures import finished_run

SHARED = ("pack", "surrogate")


def logged(folder: Folder) -> dict[str, Any]:
    """Return every run by its name."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder.path}/mlflow.db")
    return {run.info.run_name: run for run in client.search_runs([client.get_experiment_by_name("run").experiment_id])}


def track(config: RunConfig, folder: Folder, *stages: str) -> Tracker:
    tracker = open_tracker(config, folder)
    for stage in stages:
        tracker.log_stage(stage, RunResults.read(folder))
    return tracker


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Folder]:
    """A sweep over methods and steps, with one point protected and logged."""
    path = tmp_path_factory.mktemp("runs") / "run"
    config, folder = finished_run.write(path, SHARED)
    config = replace(config, sweep=("protect.steps=2", "protect.method=tap,sep"))
    sweep = track(config, folder, *SHARED)
    sweep.begin_sweep(RunResults.read(folder))
    wanted = grid(config)[0]
    own = begin(folder, wanted.name, wanted.settings)
    finished_run.write(Path(own.path), ("protect",), wanted.config)
    sweep.point(wanted.config, own).log_stage("protect", RunResults.read(own))
    return config, folder


def test_what_was_swept_is_said_of_the_sweep_and_its_values_of_the_points(swept: tuple[RunConfig, Folder]) -> None:
    config, folder = swept
    runs = logged(folder)
    for name in ("run", "surrogate"):
        assert not {"method", "budget", "targets"} & runs[name].data.tags.keys()
        assert runs[name].data.tags["preset"] == "smoke"
    assert runs["run"].data.tags["swept"] == "protect.method, protect.steps"
    assert not {"protect.method", "protect.steps"} & runs["run"].data.params.keys()
    assert runs["run"].data.params["protect.eps_levels"] == str(config.protect.eps_levels)
    of_point = {"method": "tap", "budget": "8/255", "targets": "shift"}
    for name in ("method-tap_steps-2", "protect"):
        assert runs[name].data.tags.items() >= of_point.items()
    assert runs["method-tap_steps-2"].data.params.items() >= {"protect.method": "tap", "protect.steps": "2"}.items()


def test_a_later_release_of_the_run_itself_has_all_settings(swept: tuple[RunConfig, Folder]) -> None:
    config, folder = swept
    before = logged(folder)["run"].info.run_id
    plain = replace(config, sweep=())
    finished_run.write(Path(folder.path), ("protect",), plain)
    track(plain, folder, *SHARED, "protect")
    parent = logged(folder)["run"]
    assert parent.info.run_id == before
    assert parent.data.tags.items() >= {"method": "sep-fa", "budget": "8/255", "targets": "shift"}.items()
    assert parent.data.params["protect.steps"] == str(config.protect.steps)

    track(replace(config, sweep=("protect.eps-levels=4",)), folder, *SHARED).begin_sweep(RunResults.read(folder))  # a second sweep follows
    parent = logged(folder)["run"]
    assert parent.info.run_id == before
    assert parent.data.tags["swept"] == "protect.eps_levels"
    assert parent.data.tags["method"] == "sep-fa"


def test_a_second_sweep_over_other_fields_keeps_none_of_the_first_ones_tags(tmp_path: Path) -> None:
    config, folder = finished_run.write(tmp_path / "run", SHARED)
    everywhere = {"method": "sep-fa", "budget": "8/255", "targets": "shift"}
    begun = ""
    for sweep, named, absent in (
        (("protect.steps=2",), "protect.steps", set()),
        (("protect.method=tap,sep", "protect.eps-levels=2,4"), "protect.method, protect.eps_levels", {"method", "budget", "targets"}),
        (("protect.targets=per-sample",), "protect.targets", {"targets"}),
    ):
        track(replace(config, sweep=sweep), folder, *SHARED).begin_sweep(RunResults.read(folder))
        runs = logged(folder)
        begun = begun or runs["run"].info.run_id
        assert runs["run"].info.run_id == begun
        assert runs["run"].data.tags["swept"] == named
        for name in ("run", "surrogate"):
            tags = runs[name].data.tags
            assert {tag: tags[tag] for tag in everywhere if tag in tags} == {t: v for t, v in everywhere.items() if t not in absent}
    assert runs["run"].data.params["protect.steps"] == str(config.protect.steps)  # a value that all points share now
