"""Victims of the clean share of a dilution alone: they train once, on those images only, and are no measure of the protection."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.local import LocalExecutor
from cluster.resources import Resources
from pipeline.config.schema import RunConfig
from pipeline.pages import comparison_figures
from pipeline.pages.comparison_page import write
from pipeline.results import summary
from pipeline.results.comparison import compare, text
from pipeline.results.run_results import RunResults
from pipeline.results.summary import headline
from pipeline.shards.shard import read_shard
from pipeline.stages import report, victim
from pipeline.stages.sequence import run_stages
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Manifest
from pipeline.tracking.tracker import open_tracker
from pipeline.training import trial
from pipeline.training.clean_shares import check_clean_shares, protected_labels
from pipeline.training.victim_images import VictimImages
from tests.fixtures import finished_run
from tests.fixtures.executors import LOCAL
from tests.fixtures.trial_outcomes import outcome


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the trials that are trained, in order of their beginning."""
    names: list[str] = []

    def here(function: Any, tasks: Mapping[str, Any], **_: Any) -> None:
        for name, task in tasks.items():
            names.append(name)
            function(task, lambda result: None)

    threads = torch.get_num_threads()
    monkeypatch.setattr(LocalExecutor, "sweep", staticmethod(here))
    yield names
    torch.set_num_threads(threads)


def protected_run(run: Path, classes: tuple[str, ...] = ()) -> tuple[RunConfig, Folder]:
    base = finished_run.configuration(run)
    config = replace(base, protect=replace(base.protect, classes=classes), victim=replace(base.victim, epochs=1, seeds=(0,)))
    return finished_run.write(run, ("pack", "surrogate", "protect"), config)


def asking(config: RunConfig, *names: str) -> RunConfig:
    return replace(config, victim=replace(config.victim, countermeasures=names))


def test_it_is_trained_once_for_both_kinds_of_data(tmp_path: Path, trained: list[str]) -> None:
    config, folder = protected_run(tmp_path / "run")
    asked = asking(config, "none", "dilution-50", "clean-only-50")
    victim.execute(asked, folder, LOCAL)
    assert sorted(trained) == [
        *("resnet8-clean-clean-only-50-seed0", "resnet8-clean-none-seed0"),
        *("resnet8-protected-dilution-50-seed0", "resnet8-protected-none-seed0"),
    ]
    clean, protected = (outcome(folder, f"resnet8-{data}-clean-only-50-seed0") for data in ("clean", "protected"))
    assert {name for name in clean if clean[name] != protected[name]} - {"seconds", "waiting_seconds"} == {"data"}
    assert (protected["data"], protected["countermeasure"]) == ("protected", "clean-only-50")
    assert clean["loss_per_epoch"] != outcome(folder, "resnet8-clean-none-seed0")["loss_per_epoch"]

    # Another protection of the same images does not change the trial.
    trained.clear()
    path = Path(folder.file("protect/manifest.json"))
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "counts": {**content["counts"], "eps_levels": 1}}))
    victim.execute(replace(asked, overwrite=True), folder, LOCAL)
    assert sorted(trained) == ["resnet8-protected-dilution-50-seed0", "resnet8-protected-none-seed0"]


@pytest.mark.parametrize("memory_limit_mb", [0, 2000])
@pytest.mark.parametrize("classes", [(), ("horizontal", "2")])
def test_its_images_are_the_clean_ones_of_the_dilution(tmp_path: Path, memory_limit_mb: int, classes: tuple[str, ...]) -> None:
    config, folder = protected_run(tmp_path / "run", classes)
    config = replace(config, memory_limit_mb=memory_limit_mb, cache_gb=0)
    pack, protect = Manifest.load(folder, "pack"), Manifest.load(folder, "protect")
    stored = [
        {sample.pixels.tobytes(): sample for shard in manifest.shards["train"] for sample in read_shard(folder.child(stage), shard)}
        for stage, manifest in (("pack", pack), ("protect", protect))
    ]
    seen, steps = {}, set()
    for name in ("dilution-50", "clean-only-50"):
        cell = trial.Trial("resnet8", "protected", name, 0)
        task = trial.task_of(cell, config, folder, pack, protect, Resources(((1, 0),), 1, 1), 1)
        batches = VictimImages(task, 7, torch.device("cpu")).batches(task.config)
        steps.add(batches.steps)
        seen[name] = [image.permute(1, 2, 0).numpy().tobytes() for images, _ in batches.epoch(0) for image in images]
        assert len(seen[name]) == 36
    assert len(steps) == 1
    clean, protected = stored
    share = {clean[image].key for image in seen["dilution-50"] if image not in protected}
    of_protected = {sample.key for sample in clean.values() if sample.label in protect.counts["classes"]}
    assert len(share) == len(of_protected) / 2
    assert {clean[image].key for image in seen["clean-only-50"]} & of_protected == share
    labels = sorted(clean[image].label for image in seen["clean-only-50"])
    assert labels == 12 * [0] + 12 * [1] + 12 * [2]


def test_alone_it_says_nothing_of_the_protection(tmp_path: Path, trained: list[str]) -> None:
    config, folder = protected_run(tmp_path / "run")
    asked = asking(config, "clean-only-50")
    victim.execute(asked, folder, LOCAL)
    manifest = report.execute(asked, folder)
    assert not {"clean_accuracy", "protected_accuracy"} & headline(RunResults.read(folder)).keys()
    page = re.sub(r"\s+", " ", folder.read("report/index.html").decode())
    assert "No victim is finished yet that was trained on nothing but the release" in page
    assert "Trained on the protected release" not in page
    assert not {"accuracy", "classes"} & set(manifest.counts["pictures"])
    assert "trained on the protected release" not in summary.summary(asked, RunResults.read(folder))


def test_a_comparison_shows_it_as_what_it_is_and_not_as_a_protection(tmp_path: Path, trained: list[str]) -> None:
    config, folder = protected_run(tmp_path / "run")
    victim.execute(asking(config, "none", "clean-only-50"), folder, LOCAL)
    both = compare([RunResults.read(folder)])
    said = "Victims under clean-only-50 had no image of a release: one training stands in every column."
    assert said in re.sub(r"\s+", " ", text(both))
    write(both, Folder.open(str(tmp_path / "comparison")), "title")
    assert said in (tmp_path / "comparison" / "index.html").read_text()
    assert [len(pair.trained) for pair in both.runs["run"].pairs] == [2, 1]

    alone_config, alone = protected_run(tmp_path / "alone")
    victim.execute(asking(alone_config, "clean-only-50"), alone, LOCAL)
    assert not comparison_figures.has_costs(compare([RunResults.read(alone)]))
    assert "had no image" not in text(compare([RunResults.read(finished_run.write(tmp_path / "other")[1])]))


def test_a_share_without_images_of_a_class_is_refused_before_anything_is_trained(tmp_path: Path, trained: list[str]) -> None:
    config, folder = finished_run.write(tmp_path / "run", ("pack",))
    asked = replace(asking(config, "none", "clean-only-1"), stages=("surrogate", "protect", "victim"))
    with pytest.raises(ValueError, match=r"victim.countermeasures: clean-only-1: of the \d+ images of class \d+ none"):
        run_stages(asked, folder, open_tracker(asked, folder), LOCAL, asked.needed_stages)
    assert not folder.exists("surrogate/started.json")
    pack = Manifest.load(folder, "pack")
    labels = partial(protected_labels, folder.child("pack"), pack.shards["train"])
    check_clean_shares(asking(config, "none", "clean-only-50", "dilution-1"), pack.counts["classes"], labels)
