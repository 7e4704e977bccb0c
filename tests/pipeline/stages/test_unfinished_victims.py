"""A matrix with failed trainings: every view of the run shows the others and names the failed ones, and the stage is not finished."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.local import LocalExecutor
from cluster.work import WorkFailed
from pipeline.config.schema import RunConfig, StageName
from pipeline.results import summary
from pipeline.results.comparison import compare
from pipeline.results.run_results import RunResults
from pipeline.results.summary import headline
from pipeline.shards.tables import read_table
from pipeline.stages import report, victim
from pipeline.stages.sequence import run_stages
from pipeline.storage.folder import Folder
from pipeline.storage.layout import UNFINISHED
from pipeline.tracking.tracker import open_tracker
from tests.fixtures import finished_run
from tests.fixtures.executors import LOCAL


class Trainings:
    """An executor's trials in this process, some of which fail."""

    def __init__(self) -> None:
        self.broken: set[str] = set()

    def __call__(self, function: Any, tasks: Mapping[str, Any], *, what: str, **_: Any) -> None:
        for name in tasks.keys() - self.broken:
            function(tasks[name], lambda result: None)
        if failed := tasks.keys() & self.broken:
            raise WorkFailed(what, dict.fromkeys(failed, "ValueError: no luck"))


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Trainings]:
    """Trials that replace those of the executor."""
    threads, made = torch.get_num_threads(), Trainings()
    monkeypatch.setattr(LocalExecutor, "sweep", made)
    yield made
    torch.set_num_threads(threads)


@pytest.fixture
def protected(tmp_path: Path) -> tuple[RunConfig, Folder]:
    """A run with protected images that asks for victims of two seeds."""
    config, folder = finished_run.write(tmp_path / "run", ("pack", "surrogate", "protect"))
    return replace(config, victim=replace(config.victim, epochs=1)), folder


def said(folder: Folder) -> str:
    """Return the words of the page."""
    return re.sub(r"\s+", " ", folder.read("report/index.html").decode())


def test_what_is_there_is_shown_beside_the_names_of_what_is_not(protected: tuple[RunConfig, Folder], trainings: Trainings) -> None:
    config, folder = protected
    trainings.broken = {"resnet8-protected-none-seed1"}
    with pytest.raises(WorkFailed, match="no luck"):
        victim.execute(config, folder, LOCAL)
    there = RunResults.read(folder)
    assert "victim" not in there.manifests
    assert {(row["data"], row["seed"]) for row in there.trials} == {("clean", 0), ("clean", 1), ("protected", 0)}
    first = report.execute(config, folder)
    missing = "1 of 4 results are missing, by failure or for lack of time: resnet8-protected-none-seed1."
    assert f"The victims are not finished: {missing}" in said(folder)
    assert "accuracy" in first.counts["pictures"]
    known = headline(RunResults.read(folder))
    of_seed_0 = {row["data"]: row["last_accuracy"] for row in there.trials if row["seed"] == 0}
    assert (known["clean_accuracy"], known["protected_accuracy"], known["seeds"]) == (of_seed_0["clean"], of_seed_0["protected"], 1)
    assert re.search(r"missing victims +1 +of 4 results", summary.summary(config, RunResults.read(folder)))
    assert report.execute(config, folder) == first

    trainings.broken = set()
    victim.execute(config, folder, LOCAL)
    assert not folder.exists(f"victim/{UNFINISHED}")
    assert report.execute(config, folder) != first
    assert "not finished" not in said(folder)
    assert "missing victims" not in summary.summary(config, RunResults.read(folder))
    assert headline(RunResults.read(folder))["seeds"] == 2


def test_a_start_that_asks_for_a_report_reports_what_is_there(protected: tuple[RunConfig, Folder], trainings: Trainings) -> None:
    config, folder = protected
    trainings.broken = {"resnet8-protected-none-seed1"}
    tracker = open_tracker(replace(config, tracking_uri="none"), folder)
    with pytest.raises(WorkFailed, match="no luck"):
        run_stages(config, folder, tracker, LOCAL, ["victim", "report"])
    assert "1 of 4 results are missing" in said(folder)


def test_clean_victims_alone_say_nothing_but_that_others_failed(protected: tuple[RunConfig, Folder], trainings: Trainings) -> None:
    config, folder = protected
    trainings.broken = {f"resnet8-protected-none-seed{seed}" for seed in (0, 1)}
    with pytest.raises(WorkFailed, match="no luck"):
        victim.execute(config, folder, LOCAL)
    report.execute(config, folder)
    assert "No victim is finished yet on both clean and protected images" in said(folder)
    assert "2 of 4 results are missing" in said(folder)


def test_no_other_victim_stands_in_for_the_one_a_run_is_known_by(protected: tuple[RunConfig, Folder], trainings: Trainings) -> None:
    config, folder = protected
    config = replace(config, victim=replace(config.victim, countermeasures=("none", "grayscale")))
    trainings.broken = {f"resnet8-protected-none-seed{seed}" for seed in (0, 1)}
    with pytest.raises(WorkFailed, match="no luck"):
        victim.execute(config, folder, LOCAL)
    report.execute(config, folder)
    assert not {"clean_accuracy", "protected_accuracy", "victim"} & headline(RunResults.read(folder)).keys()
    assert "Trained on the clean images, resnet8, grayscale gets" in said(folder)


def test_what_is_there_of_an_earlier_protection_is_not_shown(protected: tuple[RunConfig, Folder], trainings: Trainings) -> None:
    config, folder = protected
    trainings.broken = {"resnet8-clean-none-seed1"}
    with pytest.raises(WorkFailed, match="no luck"):
        victim.execute(config, folder, LOCAL)
    assert RunResults.read(folder).trials
    finished_run.write(Path(folder.path), ("protect",), replace(config, protect=replace(config.protect, steps=2), overwrite=True))
    results = RunResults.read(folder)
    assert not [*results.trials, *results.missing_trials, *results.victim_asked]
    report.execute(config, folder)
    assert "results are missing" not in said(folder)


def test_a_comparison_has_what_is_there_over_the_seeds_of_both_sides(protected: tuple[RunConfig, Folder], trainings: Trainings) -> None:
    config, folder = protected
    trainings.broken = {"resnet8-protected-none-seed1"}
    with pytest.raises(WorkFailed, match="no luck"):
        victim.execute(config, folder, LOCAL)
    run = RunResults.read(folder)
    (pair,) = run.pairs
    assert pair.clean.seeds == pair.protected.seeds == [0]
    assert pair.clean.last.deviation is None
    assert compare([run]).warnings == ("run: 1 of 4 results missing: resnet8-protected-none-seed1",)
    other = finished_run.configuration(Path(folder.path).parent / "other")
    finished_run.write(Path(other.run), config=replace(other, victim=replace(config.victim, epochs=2)))
    (said,) = (text for text in compare([run, RunResults.read(Folder.open(other.run))]).warnings if "epochs" in text)
    assert said == "victims were trained differently, victim.epochs: 1 (run); 2 (other)"


def test_the_tracker_has_what_is_there_and_then_all_of_it_once(protected: tuple[RunConfig, Folder], trainings: Trainings) -> None:
    from mlflow import MlflowClient

    config, folder = protected
    client = MlflowClient(tracking_uri=f"sqlite:///{folder.path}/mlflow.db")

    def logged() -> tuple[Any, list[str]]:
        """Return the run's own MLflow run, and the names of its victims' runs."""
        found = client.search_runs([client.get_experiment_by_name("run").experiment_id])
        (parent,) = (run for run in found if "mlflow.parentRunId" not in run.data.tags)
        return parent, sorted(run.info.run_name for run in found if run.data.tags["stage"] == "victim")

    def go(config: RunConfig, stage: StageName) -> None:
        run_stages(config, folder, open_tracker(config, folder), LOCAL, [stage])

    trainings.broken = {"resnet8-protected-none-seed1"}
    with pytest.raises(WorkFailed, match="no luck"):
        go(config, "victim")
    first, names = logged()
    assert names == ["none · clean · resnet8 · seed 0", "none · clean · resnet8 · seed 1", "none · protected · resnet8 · seed 0"]
    assert re.search(r"missing victims +1 +of 4 results", first.data.tags["mlflow.note.content"])
    assert "resnet8-protected-none-seed1." in first.data.tags["mlflow.note.content"]
    assert "protected_accuracy" in first.data.metrics

    go(replace(config, victim=replace(config.victim, epochs=9)), "report")  # shows what its victims were trained with
    assert logged()[0].info.run_id == first.info.run_id
    assert "--victim.epochs 1 " in said(folder)

    trainings.broken = set()
    go(config, "victim")
    parent, names = logged()
    assert parent.info.run_id == first.info.run_id
    assert names == [f"none · {data} · resnet8 · seed {seed}" for data in ("clean", "protected") for seed in (0, 1)]


def test_what_is_not_asked_for_any_more_stays_and_is_not_trained_again(protected: tuple[RunConfig, Folder], trainings: Trainings) -> None:
    config, folder = protected

    def with_victims(*names: str) -> list[str]:
        """Ask for these countermeasures, and return those of the trials in the results."""
        asked = replace(config, victim=replace(config.victim, countermeasures=names, seeds=(0,)), overwrite=True)
        victim.execute(asked, folder, LOCAL)
        return [row["countermeasure"] for row in read_table(folder, "victim/results.parquet").to_pylist()]

    assert with_victims("none", "grayscale") == ["none", "none", "grayscale", "grayscale"]
    before = {name: folder.child("victim").read(name) for name in folder.child("victim").names() if name.startswith("resnet8")}
    trainings.broken = {name.removesuffix(".json") for name in before}
    assert with_victims("jpeg-10") == ["jpeg-10", "jpeg-10"]
    assert {name: folder.child("victim").read(name) for name in before} == before
    assert with_victims("none", "grayscale", "jpeg-10") == [name for name in ("none", "grayscale", "jpeg-10") for _ in range(2)]


def test_fewer_countermeasures_than_an_audit_asked_for_are_done_or_finished(
    protected: tuple[RunConfig, Folder], trainings: Trainings
) -> None:
    config, folder = protected

    def with_victims(*names: str, seed: int = 0) -> list[str]:
        """Ask for these countermeasures, without `--overwrite`, and return those of the trials in the results."""
        victim.execute(replace(config, victim=replace(config.victim, countermeasures=names, seeds=(seed,))), folder, LOCAL)
        return [row["countermeasure"] for row in RunResults.read(folder).trials if row["data"] == "clean"]

    trainings.broken = {"resnet8-protected-grayscale-seed0"}
    with pytest.raises(WorkFailed, match="no luck"):
        with_victims("none", "grayscale")
    assert with_victims("none") == ["none"]
    trainings.broken = set()
    with pytest.raises(ValueError, match="countermeasures"):
        with_victims("none", "grayscale")
    config = replace(config, overwrite=True)
    with_victims("none", "grayscale")
    config = replace(config, overwrite=False)
    assert with_victims("none") == ["none", "grayscale"]
    with pytest.raises(ValueError, match=r"victim\.seeds"):
        with_victims("none", seed=1)


def test_states_of_finished_and_of_unwanted_trainings_are_removed(protected: tuple[RunConfig, Folder], trainings: Trainings) -> None:
    config, folder = protected
    trainings.broken = {f"resnet8-protected-none-seed{seed}" for seed in (0, 1)}
    with pytest.raises(WorkFailed, match="no luck"):
        victim.execute(config, folder, LOCAL)
    states = [f"resnet8-{data}-none-seed{seed}.pt" for data in ("clean", "protected") for seed in (0, 1)]
    for name in states:
        folder.child("victim").write(name, b"of a start that was cut short")
    with pytest.raises(WorkFailed, match="no luck"):
        victim.execute(replace(config, victim=replace(config.victim, seeds=(1,)), overwrite=True), folder, LOCAL)
    assert [name for name in folder.child("victim").names() if name in states] == ["resnet8-protected-none-seed1.pt"]
