"""Victims: accuracy after relabelling, trials with the same start, no finished trial twice, and errors that name failed ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.resources import Resources
from cluster.work import WorkFailed
from pipeline.config.presets import preset
from pipeline.config.schema import RunConfig
from pipeline.shards.tables import read_table
from pipeline.stages import pack, victim
from pipeline.storage.folder import Folder
from pipeline.storage.layout import RESULTS
from pipeline.storage.run import begin
from pipeline.storage.stage import Manifest, Stage
from pipeline.training import trial, trial_records
from pipeline.training.networks import build_network
from pipeline.training.states import to_bytes
from pipeline.training.victim_images import VictimImages
from sep.countermeasures.projection import directions, fit
from sep.countermeasures.registry import COUNTERMEASURES, Countermeasure
from sep.countermeasures.registry import plan as countermeasure_plan
from tests.fixtures import finished_run
from tests.fixtures.executors import LOCAL
from tests.fixtures.trial_outcomes import change, outcome


def test_relabelling_undoes_a_permutation_and_nothing_else() -> None:
    shifted = np.roll(np.diag([30, 30, 40]), 1, axis=1)
    assert shifted.trace() == 0
    assert trial.relabelled_accuracy(shifted) == 100.0
    assert trial.relabelled_accuracy(np.array([[8, 2], [1, 9]])) == 85.0
    # With rows for only some classes, their images may still be taken for any class.
    assert trial.relabelled_accuracy(np.array([[1, 0, 9, 0], [0, 2, 0, 8]])) == 85.0
    # Two classes are predicted as one: one-to-one relabelling can restore only one of them.
    assert trial.relabelled_accuracy(np.array([[0, 10, 0], [0, 10, 0], [0, 0, 10]])) == pytest.approx(200 / 3)


@pytest.fixture
def released(tmp_path: Path) -> tuple[RunConfig, Folder]:
    """A packed run whose protected images are the clean ones, so that both victims must come out alike."""
    config = replace(preset("smoke"), run=str(tmp_path / "run"))
    folder = Folder.open(config.run)
    packed = pack.execute(config, folder, LOCAL)
    stage = Stage(folder, "protect", {}, seed=0, inputs=("pack",))
    for shard in packed.shards["train"]:
        stage.folder.write(shard.name, folder.child("pack").read(shard.name))
    stage.finish({"classes": list(range(10))}, {"train": packed.shards["train"]})
    return config, folder


@pytest.fixture(scope="module")
def striped(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Folder]:
    """A tiny run with protected images."""
    run = tmp_path_factory.mktemp("striped")
    config = finished_run.configuration(run)
    config = replace(config, victim=replace(config.victim, epochs=2, augmentation="crop-flip"))
    return finished_run.write(run, ("pack", "surrogate", "protect"), config)


def test_a_victim_that_diverges_is_named_and_counts_as_none(released: tuple[RunConfig, Folder]) -> None:
    config, folder = released
    wild = replace(config, victim=replace(config.victim, lr=1e12, epochs=2))
    with pytest.raises(WorkFailed, match=r"training diverged in epoch \d .*lower --victim\.lr"):
        victim.execute(wild, folder, LOCAL)
    assert not any(name.startswith("resnet8") for name in folder.child("victim").names())


def test_what_decides_a_trial_is_what_it_was_made_from(
    striped: tuple[RunConfig, Folder], put_countermeasure: Callable[[str, Countermeasure], None]
) -> None:
    config, folder = striped
    pack, protect = Manifest.load(folder, "pack"), Manifest.load(folder, "protect")

    def made_from(name: str = "cutout", memory_limit_mb: int = 2000, seed: int = 0) -> str:
        cell, asked = trial.Trial("resnet8", "protected", name, 0), replace(config, memory_limit_mb=memory_limit_mb, seed=seed)
        return trial.task_of(cell, asked, folder, pack, protect, Resources(((2, 0),), 2, 2), 1).made_from

    first = made_from()
    assert first == made_from(memory_limit_mb=2001)  # the images fit in memory either way
    assert len({first, made_from(seed=1), made_from(memory_limit_mb=0), made_from("mixup")}) == 4
    put_countermeasure("cutout", replace(COUNTERMEASURES["cutout"], revision=1))
    assert made_from() != first
    assert made_from("grayscale") == made_from("grayscale")


def test_of_other_points_only_missing_clean_victims_are_looked_for(
    striped: tuple[RunConfig, Folder], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = striped
    pack, protect = Manifest.load(folder, "pack"), Manifest.load(folder, "protect")
    own, other = (begin(folder, name, {}) for name in ("steps-1", "steps-2"))
    cells = [trial.Trial("resnet8", data, "none", seed) for data in ("clean", "protected") for seed in (0, 1)]
    tasks = [trial.task_of(cell, config, folder, pack, protect, Resources(((2, 0),), 2, 2), 1) for cell in cells]
    for place, trained in ((own, tasks[:1]), (other, tasks)):
        for task in trained:
            trial_records.write(place.child("victim"), task.trial.name, {"made_from": task.made_from, "by": place.path})
    read, looked_at = trial_records.read, []

    def watched(place: Folder, name: str, made_from: str) -> dict[str, object] | None:
        looked_at.append((place.path, name))
        return read(place, name, made_from)

    monkeypatch.setattr(trial_records, "read", watched)
    victim._trained_elsewhere(tasks, own)
    assert {name for place, name in looked_at if place != own.child("victim").path} == {"resnet8-clean-none-seed1"}
    by = {seed: outcome(own, f"resnet8-clean-none-seed{seed}")["by"] for seed in (0, 1)}
    assert by == {0: own.path, 1: other.path}


def test_same_images_same_victims_and_no_trial_twice(released: tuple[RunConfig, Folder]) -> None:
    config, folder = released
    manifest = victim.execute(config, folder, LOCAL)
    clean, protected = read_table(folder.child("victim"), RESULTS).to_pylist()
    assert (clean["data"], protected["data"]) == ("clean", "protected")
    assert clean["accuracy_per_epoch"] == protected["accuracy_per_epoch"]
    assert [clean["precision"], protected["precision"], *manifest.counts["precision"]] == ["float32"] * 3  # what auto is on a CPU
    assert len(clean["accuracy_per_epoch"]) == config.victim.epochs
    assert clean["peak_accuracy"] == max(clean["accuracy_per_epoch"]) >= clean["last_accuracy"] == clean["accuracy_per_epoch"][-1]
    assert clean["relabelled_accuracy"] >= clean["last_accuracy"]
    assert clean["other_accuracy"] is None

    # As after the death of the driver between two trials: only the missing one is trained.
    change(folder, "resnet8-clean-none-seed0", last_accuracy=-1.0)
    Path(folder.file("victim/resnet8-protected-none-seed0.json")).unlink()
    Path(folder.file("victim/manifest.json")).unlink()
    assert victim.execute(config, folder, LOCAL).hash == manifest.hash
    again = read_table(folder.child("victim"), RESULTS).to_pylist()
    assert again[0]["last_accuracy"] == -1.0, "the finished trial was trained again"
    assert again[1] == protected


def test_only_what_a_change_concerns_is_trained_anew(released: tuple[RunConfig, Folder]) -> None:
    """Another seed leaves the trials of the first alone; other protected images leave the clean victims alone."""
    config, folder = released
    victim.execute(config, folder, LOCAL)
    for data in ("clean", "protected"):
        change(folder, f"resnet8-{data}-none-seed0", last_accuracy=-1.0)
    more = replace(config, victim=replace(config.victim, seeds=(1, 0)))
    with pytest.raises(ValueError, match=r"victim\.seeds: \[0\] -> \[1, 0\].*--overwrite, which makes what is missing"):
        victim.execute(more, folder, LOCAL)
    victim.execute(replace(more, overwrite=True), folder, LOCAL)
    rows = {(row["data"], row["seed"]): row["last_accuracy"] for row in read_table(folder.child("victim"), RESULTS).to_pylist()}
    assert rows["clean", 0] == rows["protected", 0] == -1.0
    assert min(rows["clean", 1], rows["protected", 1]) >= 0

    path = Path(folder.file("protect/manifest.json"))
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "counts": {**content["counts"], "eps_levels": 1}}))
    with pytest.raises(ValueError, match=r"inputs\.protect"):
        victim.execute(config, folder, LOCAL)
    victim.execute(replace(config, overwrite=True), folder, LOCAL)
    rows = {(row["data"], row["seed"]): row["last_accuracy"] for row in read_table(folder.child("victim"), RESULTS).to_pylist()}
    assert set(rows) == {("clean", 0), ("protected", 0)}
    assert rows["clean", 0] == -1.0
    assert rows["protected", 0] >= 0


def test_protected_and_other_classes_are_measured_apart(released: tuple[RunConfig, Folder]) -> None:
    config, folder = released
    path = Path(folder.file("protect/manifest.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "counts": {"classes": [1, 4, 8]}}))
    victim.execute(config, folder, LOCAL)
    for row in read_table(folder.child("victim"), RESULTS).to_pylist():
        table, protected = np.array(outcome(folder, f"resnet8-{row['data']}-none-seed0")["confusion"]), [1, 4, 8]
        others = [k for k in range(10) if k not in protected]
        assert table.sum(1).tolist() == [4] * 10
        assert row["last_accuracy"] == pytest.approx(100 * table.diagonal()[protected].sum() / 12)
        assert row["other_accuracy"] == pytest.approx(100 * table.diagonal()[others].sum() / 28)
        assert row["relabelled_accuracy"] == pytest.approx(trial.relabelled_accuracy(table[protected]))


def test_failed_trial_is_named_after_the_others_finished_and_alone_tried_again(
    released: tuple[RunConfig, Folder], caplog: pytest.LogCaptureFixture
) -> None:
    config, folder = released
    first = Manifest.load(folder, "protect").shards["train"][0].name
    whole = folder.child("protect").read(first)
    folder.child("protect").write(first, b"not what was written")
    with pytest.raises(WorkFailed, match=r"resnet8-protected-none-seed0.*train-000000\.tar was altered"):
        victim.execute(config, folder, LOCAL)
    change(folder, "resnet8-clean-none-seed0", last_accuracy=-1.0)
    assert not folder.exists("victim/manifest.json")

    folder.child("protect").write(first, whole)
    with caplog.at_level("INFO", logger="pipeline"):
        victim.execute(config, folder, LOCAL)
    assert "1 of 2 trials are there already; left: resnet8-protected-none-seed0" in caplog.text
    assert re.search(r"victim: 1 training, \d+ % of the time waiting for images", caplog.text)
    clean, protected = read_table(folder.child("victim"), RESULTS).to_pylist()
    assert clean["last_accuracy"] == -1.0, "the finished trial was trained again"
    assert protected["last_accuracy"] >= 0


def test_clean_and_protected_stand_beside_each_other_under_the_same_countermeasures(released: tuple[RunConfig, Folder]) -> None:
    """Equal images give equal results. Clean images are not diluted, and no training is repeated for a dilution."""
    config, folder = released
    names = ("dilution-50+mixup", "grayscale+jpeg-10", "mixup")
    victim.execute(replace(config, victim=replace(config.victim, countermeasures=names)), folder, LOCAL)
    rows = {(row["countermeasure"], row["data"]): row for row in read_table(folder.child("victim"), RESULTS).to_pylist()}
    assert list(rows) == [(name, data) for name in names for data in ("clean", "protected")]
    for name in names:
        outcomes = [outcome(folder, f"resnet8-{data}-{name.replace('+', '_')}-seed0") for data in ("clean", "protected")]
        assert {each["countermeasure"] for each in outcomes} == {name}
        assert outcomes[0]["loss_per_epoch"] == outcomes[1]["loss_per_epoch"]
        table = np.array(outcomes[1]["confusion"])
        assert table.sum() == 40
        assert (
            outcomes[1]["accuracy_per_class"]
            == (100 * table.diagonal() / table.sum(1)).tolist()
            == rows[name, "clean"]["accuracy_per_class"]
        )
    assert rows["mixup", "clean"]["loss_per_epoch"] == rows["dilution-50+mixup", "clean"]["loss_per_epoch"]
    assert rows["mixup", "clean"]["loss_per_epoch"] != rows["grayscale+jpeg-10", "clean"]["loss_per_epoch"]


def test_every_countermeasure_trains_and_the_clean_images_are_the_ceiling(striped: tuple[RunConfig, Folder]) -> None:
    """Train a tiny victim under each, and check its images, its epochs and its result."""
    config, folder = striped
    pack, protect = Manifest.load(folder, "pack"), Manifest.load(folder, "protect")
    alone = Resources(nodes=((1, 0),), workers=1, tasks=1)
    folder.write("initial.pt", to_bytes(build_network("resnet8", pack).state_dict()))
    config = replace(config, victim=replace(config.victim, initial=folder.file("initial.pt")))
    # One percent of 36 images is none; the costly ones learn for minutes, and have tests of their own with fewer steps.
    names = [name for name, each in COUNTERMEASURES.items() if name != "clean-only-1" and not each.costly]
    for name in names:
        reports: list[dict[str, float]] = []
        for data in ("clean", "protected"):
            cell = trial.Trial("resnet8", data, name, 0)
            trial.train_victim(trial.task_of(cell, config, folder, pack, protect, alone, 1), reports.append)
            found = outcome(folder, cell.name)
            assert len(found["accuracy_per_epoch"]) == countermeasure_plan(name).training(config.victim).epochs, name
            assert np.isfinite(found["loss_per_epoch"]).all(), name
            assert np.array(found["confusion"]).sum() == sum(shard.count for shard in pack.shards["test"])
        assert [report["epoch"] for report in reports] == 2 * list(range(len(reports) // 2))
    losses = {
        name: [outcome(folder, f"resnet8-{data}-{name}-seed0")["loss_per_epoch"] for data in ("clean", "protected")] for name in names
    }
    for name in names:
        assert (losses[name][0] == losses[name][1]) == name.startswith("clean-only"), f"{name}: other images were read"
        diluted = name.startswith("dilution")
        assert (losses[name][0] == losses["none"][0]) == (diluted or name == "none"), name
        assert (losses[name][1] == losses["none"][1]) == (name in ("none", "dilution-1")), name


@pytest.mark.parametrize("memory_limit_mb", [0, 100])
def test_a_projection_is_fitted_on_what_came_before_it_and_done_to_all(striped: tuple[RunConfig, Folder], memory_limit_mb: int) -> None:
    """In memory and streamed, the batches are orthogonal to the directions of a linear model of the grey images."""
    config, folder = striped
    config = replace(config, memory_limit_mb=memory_limit_mb, cache_gb=0)
    pack, protect = Manifest.load(folder, "pack"), Manifest.load(folder, "protect")
    cell = trial.Trial("resnet8", "protected", "grayscale+orthogonal-projection", 0)
    task = trial.task_of(cell, config, folder, pack, protect, Resources(nodes=((1, 0),), workers=1, tasks=1), 1)
    batches = VictimImages(task, 7, torch.device("cpu")).batches(task.config)
    images = torch.cat([images for images, _ in batches.epoch(0)])
    plain = replace(task, plan=countermeasure_plan("grayscale"))
    grey = VictimImages(plain, 7, torch.device("cpu")).batches(plain.config)
    assert torch.allclose(images[:, 0], images[:, 1], atol=0.01), "grey stays grey: what is taken out is grey as well"
    basis = directions(fit(grey.epoch, len(pack.counts["classes"])))
    before = torch.cat([images for images, _ in grey.epoch(0)]).float()
    assert float((images.flatten(1) @ basis).abs().max()) < 0.1
    assert float((before.flatten(1) @ basis).abs().max()) > 10


def test_no_test_images_is_said(tmp_path: Path) -> None:
    config = replace(preset("smoke"), run=str(tmp_path))
    folder = Folder.open(config.run)
    Stage(folder, "pack", {}, seed=0).finish({}, {"train": [], "test": []})
    Stage(folder, "protect", {}, seed=0).finish({})
    with pytest.raises(ValueError, match=r"--pack\.test-fraction"):
        victim.execute(config, folder, LOCAL)
