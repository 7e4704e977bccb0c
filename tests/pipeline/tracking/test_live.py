"""What MLflow shows while a run goes on: the run at once, its parts when they begin, each epoch when it ends."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from cluster.deadline import Deadline, TimeIsUp
from cluster.epochs import Metrics
from cluster.local import LocalExecutor
from pipeline.config.presets import from_tree
from pipeline.config.schema import STAGES, RunConfig, StageName
from pipeline.results.run_results import RunResults
from pipeline.shards.tables import read_table
from pipeline.stages.sequence import run_stages
from pipeline.storage.folder import Folder
from pipeline.tracking import live
from pipeline.tracking.tracker import MlflowTracker, open_tracker
from tests.fixtures import finished_run
from tests.fixtures.executors import LOCAL

TRAINED = STAGES[:4]


@dataclass
class Looked:
    """What the database held each time that something was told: names of running runs, and points of each curve."""

    client: MlflowClient
    running: list[set[str]] = field(default_factory=list)
    curves: list[dict[str, int]] = field(default_factory=list)

    def look(self) -> None:
        found = self.client.search_runs(["1"])
        self.running.append({run.info.run_name for run in found if run.info.status == "RUNNING"})
        lengths = {}
        for run in found:
            for metric in {"train_loss", "images_per_second"} & run.data.metrics.keys():
                lengths[run.info.run_name] = len(self.client.get_metric_history(run.info.run_id, metric))
        self.curves.append(lengths)


@dataclass(frozen=True)
class Live:
    """A run that was looked at after everything it told, and its client."""

    config: RunConfig
    folder: Folder
    seen: Looked


def go(
    config: RunConfig, folder: Folder, executor: LocalExecutor, seen: Looked | None = None, stages: Collection[StageName] = TRAINED
) -> None:
    """Run the stages that train, and look after everything that is told."""
    tracker = open_tracker(config, folder)
    assert isinstance(tracker, MlflowTracker)
    status = "FAILED"
    told = live.Live.told
    with pytest.MonkeyPatch.context() as changed:

        def told_and_seen(self: live.Live, what: str, metrics: dict[str, Any]) -> None:
            told(self, what, metrics)
            if seen:
                tracker._outbox.wait()
                seen.look()

        changed.setattr(live, "FLUSH_SECONDS", 0.0)
        changed.setattr(live.Live, "told", told_and_seen)
        try:
            tracker.begin()
            tracker._outbox.wait()
            if seen:
                seen.look()
            run_stages(config, folder, tracker, executor, stages)
            status = "FINISHED"
        finally:
            tracker.close(status)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Live:
    threads = torch.get_num_threads()
    path = tmp_path_factory.mktemp("runs") / "run"
    base = finished_run.configuration(path)
    config = replace(base, executor="local", victim=replace(base.victim, seeds=(0,)))
    _, folder = finished_run.write(path, ("pack",), config)
    seen = Looked(MlflowClient(tracking_uri=f"sqlite:///{path}/mlflow.db"))
    seen.client.create_experiment("run", (path / "mlflow").as_uri())  # so that one can look before anything is logged
    go(config, folder, LocalExecutor(), seen)
    torch.set_num_threads(threads)
    return Live(config, folder, seen)


def runs(tracked: Live) -> dict[str, Any]:
    return {run.info.run_name: run for run in tracked.seen.client.search_runs(["1"])}


def test_the_run_is_there_before_anything_is_done(tracked: Live) -> None:
    assert tracked.seen.running[0] == {"run"}
    assert all("run" in running for running in tracked.seen.running)


def test_every_epoch_is_there_when_it_has_ended(tracked: Live) -> None:
    grown = [seen["surrogate"] for seen in tracked.seen.curves if "surrogate" in seen]
    assert grown[:4] == [1, 2, 3, 4]
    for name in ("none · protected · resnet8 · seed 0", "none · clean · resnet8 · seed 0"):
        assert [seen[name] for seen in tracked.seen.curves if name in seen][:4] == [1, 2, 3, 4]
    while_training = tracked.seen.running[1 : 1 + 4]
    assert all(running == {"run", "surrogate"} for running in while_training)


def test_every_point_has_a_time_of_its_own_and_every_child_a_real_duration(tracked: Live) -> None:
    found = runs(tracked)
    ends = []
    for name in ("surrogate", "none · protected · resnet8 · seed 0", "none · clean · resnet8 · seed 0"):
        info, metrics = found[name].info, found[name].data.metrics
        history = tracked.seen.client.get_metric_history(info.run_id, "train_loss")
        times = [point.timestamp for point in history]
        shares = tracked.seen.client.get_metric_history(info.run_id, "loader_percent")
        assert [point.step for point in history] == [point.step for point in shares] == [0, 1, 2, 3]
        assert all(0 < point.value < 100 for point in shares)
        assert info.start_time < times[0] < times[1] < times[2] < times[3] <= info.end_time
        assert times[0] - info.start_time >= 900 * metrics["epoch_seconds"] / 4  # milliseconds; a first epoch is no faster than that
        ends.append(times[-1])
    assert ends == sorted(ends)
    assert found["run"].info.start_time <= found["surrogate"].info.start_time
    assert found["run"].info.end_time >= max(run.info.end_time for name, run in found.items() if name != "run")


def test_the_run_remembers_how_to_go_on(tracked: Live) -> None:
    kept = from_tree(json.loads(tracked.folder.read("config.json")))
    assert (kept.executor, kept.tracking_uri) == ("local", None)


def test_the_pace_of_protecting_is_a_series(tracked: Live) -> None:
    client, run = tracked.seen.client, runs(tracked)["protect"].info.run_id
    pace, gradients = (client.get_metric_history(run, f"{name}_per_second") for name in ("images", "gradients"))
    assert [point.step for point in pace] == [18, 36]
    each = RunResults.read(tracked.folder).gradients_per_image
    assert [point.value * each for point in pace] == pytest.approx([point.value for point in gradients])


def test_the_rounds_of_noise_are_a_series_with_its_own_steps(tmp_path: Path) -> None:
    base = finished_run.configuration(tmp_path / "run")
    crafting = replace(base.protect, method="error-min-class", targets="shift", noise_rounds=3)
    config, folder = finished_run.write(tmp_path / "run", ("pack",), replace(base, protect=crafting))
    go(config, folder, LOCAL, stages=["protect"])
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/run/mlflow.db")
    found = {run.info.run_name: run for run in client.search_runs(["1"])}
    assert found.keys() == {"run", "protect"}
    errors = client.get_metric_history(found["protect"].info.run_id, "noise_error")
    assert [point.step for point in errors] == [0, 1, 2]
    assert RunResults.read(folder).manifests["protect"].counts["noise_error"] == errors[-1].value


def test_a_live_log_ends_as_the_files_say(tracked: Live) -> None:
    found = runs(tracked)
    for row in read_table(tracked.folder, "victim/results.parquet").to_pylist():
        run = found[f"none · {row['data']} · resnet8 · seed 0"]
        history = tracked.seen.client.get_metric_history(run.info.run_id, "test_accuracy")
        assert [point.value for point in history] == row["accuracy_per_epoch"]
        assert run.data.metrics["relabelled_accuracy"] == row["relabelled_accuracy"]
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    log = {entry.path for entry in tracked.seen.client.list_artifacts(found["run"].info.run_id, "log")}
    assert len(log) == 1


def test_the_driver_s_machine_is_a_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psutil", reason="the extra `metrics` is not installed, without which nothing is measured of the machine")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    config, folder = finished_run.write(tmp_path / "run", ("pack",))
    tracker = open_tracker(config, folder)
    tracker.begin()
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/run/mlflow.db")
    tracker.log_stage("pack", RunResults.read(folder))  # until that is logged, the run is there
    (run,) = client.search_runs(["1"])
    while not client.get_metric_history(run.info.run_id, "system/cpu_utilization_percentage"):
        time.sleep(0.1)
    tracker.close("FINISHED")
    (run,) = client.search_runs(["1"])
    assert run.info.status == "FINISHED"
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= run.data.metrics.keys()


class Interrupted(LocalExecutor):
    """An executor that somebody stops after two epochs of a training."""

    def train(self, *arguments: Any, on_epoch: Any, **named: Any) -> list[Metrics]:
        def told(row: Metrics) -> None:
            on_epoch(row)
            if row["epoch"] == 1:
                raise KeyboardInterrupt

        return super().train(*arguments, on_epoch=told, **named)


def test_an_interrupted_training_goes_on_in_its_run(tmp_path: Path) -> None:
    base = finished_run.configuration(tmp_path / "run")
    config = replace(base, victim=replace(base.victim, seeds=(0,)))
    _, folder = finished_run.write(tmp_path / "run", ("pack",), config)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/run/mlflow.db")
    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        go(config, folder, Interrupted())
    before = {run.info.run_name: run for run in client.search_runs(["1"])}
    assert {name: run.info.status for name, run in before.items()} == {"run": "FAILED", "surrogate": "FAILED"}
    go(config, folder, LocalExecutor())
    torch.set_num_threads(threads)
    after = {run.info.run_name: run for run in client.search_runs(["1"])}
    assert {run.info.status for run in after.values()} == {"FINISHED"}
    assert {name: after[name].info.run_id for name in before} == {name: run.info.run_id for name, run in before.items()}
    history = client.get_metric_history(after["surrogate"].info.run_id, "train_loss")
    assert [point.step for point in history] == [0, 1, 2, 3]


def test_a_victim_whose_time_is_up_goes_on_in_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = finished_run.configuration(tmp_path / "run")
    config = replace(base, victim=replace(base.victim, seeds=(0,), epochs=2))
    _, folder = finished_run.write(tmp_path / "run", ("pack", "surrogate", "protect"), config)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/run/mlflow.db")
    victims = [f"none · {data} · resnet8 · seed 0" for data in ("protected", "clean")]

    def logged() -> dict[str, Any]:
        return {run.info.run_name: run.info for run in client.search_runs(["1"])}

    in_time = iter([False])  # to begin the second victim, and not for its second epoch
    monkeypatch.setattr(Deadline, "passed", lambda _: folder.exists("victim/resnet8-protected-none-seed0.json") and next(in_time, True))
    with pytest.raises(TimeIsUp):
        go(config, folder, LOCAL, stages=["victim"])
    before = logged()
    assert [before[name].status for name in ("run", *victims)] == ["FAILED", "FINISHED", "FAILED"]
    monkeypatch.undo()
    go(config, folder, LOCAL, stages=["victim"])
    after = logged()
    assert [after[name].status for name in ("run", *victims)] == ["FINISHED"] * 3
    assert {name: run.run_id for name, run in after.items()} == {name: run.run_id for name, run in before.items()}
