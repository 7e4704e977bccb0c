"""Victims of a release as it was stored: the same training as on images that were re-encoded before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cluster.resources import Resources
from pipeline.config.schema import RunConfig, VictimConfig
from pipeline.pages.page import render
from pipeline.results.comparison import compare, rows
from pipeline.results.findings import scope
from pipeline.results.run_results import RunResults
from pipeline.stages import victim
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Manifest
from pipeline.training import trial
from pipeline.training.victim_images import VictimImages
from sep.countermeasures.preprocessing import grayscale, jpeg
from sep.views.registry import view
from tests.fixtures import finished_run
from tests.fixtures.executors import LOCAL
from tests.fixtures.trial_outcomes import outcome

ONE_CPU = Resources(nodes=((1, 0),), workers=1, tasks=1)


@pytest.fixture(scope="module")
def striped(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Folder]:
    """A tiny run with protected images."""
    run = tmp_path_factory.mktemp("striped")
    return finished_run.write(run, ("pack", "surrogate", "protect"), finished_run.configuration(run))


def victims(config: RunConfig, stored: str, **settings: object) -> RunConfig:
    return replace(config, victim=replace(config.victim, stored=stored, epochs=2, seeds=(0,), **settings))  # type: ignore[arg-type]


def images(config: RunConfig, folder: Folder, data: str, countermeasure: str = "none") -> Tensor:
    """The images of an epoch, as they are batched for the victim's network."""
    cell = trial.Trial("resnet8", data, countermeasure, 0)  # type: ignore[arg-type]
    task = trial.task_of(cell, config, folder, Manifest.load(folder, "pack"), Manifest.load(folder, "protect"), ONE_CPU, 1)
    opened = VictimImages(task, 7, torch.device("cpu"))
    return torch.cat([images for images, _ in opened.batches(replace(task.config, augmentation="none")).epoch(0)])


@pytest.mark.parametrize("memory_limit_mb", [0, 100])
@pytest.mark.parametrize("data", ["clean", "protected"])
def test_victims_train_on_re_encoded_images(striped: tuple[RunConfig, Folder], data: str, memory_limit_mb: int) -> None:
    config, folder = striped
    config = replace(config, memory_limit_mb=memory_limit_mb, cache_gb=0)
    before = images(config, folder, data)
    assert torch.equal(images(victims(config, "none"), folder, data), before)
    stored = images(victims(config, "jpeg-30"), folder, data)
    assert torch.equal(stored, jpeg(before, 30))
    assert torch.equal(stored, view("jpeg-30").on_stored(before))
    assert not torch.equal(stored, before)
    assert torch.equal(images(victims(config, "jpeg-30"), folder, data, "grayscale"), grayscale(stored))


def test_the_form_is_that_of_the_same_countermeasure_and_is_told_everywhere(striped: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, source = striped
    folder = Folder.open(str(tmp_path / "run"))
    for name in source.names(recursive=True):
        folder.write(name, source.read(name))
    config = replace(victims(config, "jpeg-30"), run=folder.uri)
    victim.execute(config, folder, LOCAL)
    results = RunResults.read(folder)
    assert Manifest.load(folder, "victim").asked["victim"]["stored"] == "jpeg-30"
    assert [row["stored"] for row in results.trials] == ["jpeg-30"] * 2
    assert results.pairs[0].name == "resnet8 on jpeg-30"
    assert "plain training, on images stored as jpeg-30, over one seed" in scope(results.pairs)
    assert {row["stored"] for row in rows(compare([results]))} == {"jpeg-30"}
    assert results.configuration(replace(config, victim=VictimConfig()))["victim"]["stored"] == "jpeg-30"
    page = render(config, results, dict.fromkeys(("light", "dark"), dict.fromkeys(("samples",), b"")))
    assert "All of them, clean and protected, were stored as jpeg-30 before the victims saw them." in page
    assert "--victim.stored jpeg-30" in page
    stored = outcome(folder, "resnet8-protected-none-seed0")["loss_per_epoch"]

    with pytest.raises(ValueError, match=r"victim\.stored"):
        victim.execute(victims(config, "none", countermeasures=("jpeg-30",)), folder, LOCAL)
    victim.execute(replace(victims(config, "none", countermeasures=("jpeg-30",)), overwrite=True), folder, LOCAL)
    assert outcome(folder, "resnet8-protected-jpeg-30-seed0")["loss_per_epoch"] == stored
    assert "stored" not in Manifest.load(folder, "victim").asked["victim"]


@pytest.mark.parametrize("name", ["mixup", "orthogonal-projection", "jpeg-10+early-stop", "dilution-10", "png"])
def test_what_is_no_form_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"victim\.stored: "):
        RunConfig(victim=VictimConfig(stored=name))
