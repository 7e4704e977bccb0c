"""Adversaries who train otherwise: they learn from a release that defeats an ordinary training, and as well as it from clean images."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster.deadline import Deadline, TimeIsUp
from pipeline.config.schema import RunConfig
from pipeline.storage.folder import Folder
from pipeline.training.states import to_bytes
from pipeline.training.trial import train_victim
from tests.fixtures import shortcut_run
from tests.fixtures.shortcut_run import accuracy
from tests.fixtures.trial_outcomes import outcome

Run = tuple[RunConfig, Folder]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """On images this small, more threads only wait for one another."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of weights that were trained on other pictures."""
    path = tmp_path_factory.mktemp("weights") / "initial.pt"
    path.write_bytes(to_bytes(shortcut_run.experienced().state_dict()))
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, weights: str) -> Run:
    """A release with one pattern for each class."""
    return shortcut_run.write(tmp_path_factory.mktemp("run"), initial=weights)


@pytest.fixture(scope="module")
def clean(run: Run) -> float:
    """What an ordinary victim of the clean images gets right; of the release it gets next to nothing."""
    ordinary = accuracy(run, "none", "clean")
    assert ordinary > 90
    assert accuracy(run, "none") < 45
    return ordinary


@pytest.mark.parametrize("name", ["pretrained", "pretrained-frozen", "nonlinear"])
def test_it_wins_back_what_an_ordinary_training_loses(run: Run, clean: float, name: str) -> None:
    assert accuracy(run, name, "clean") > clean - 5
    assert accuracy(run, name) > 80


@pytest.fixture(scope="module")
def few_colours(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A release whose pictures have few colours, which would do to tell two of them apart."""
    return shortcut_run.write(tmp_path_factory.mktemp("few_colours"), colours=0.0, epochs=3)


def test_contrastive_features_owe_little_to_the_texture_of_a_class(few_colours: Run) -> None:
    assert accuracy(few_colours, "contrastive") > max(75, accuracy(few_colours, "none") + 20)


@pytest.mark.slow
def test_contrastive_features_of_clean_images_are_good(few_colours: Run) -> None:
    assert accuracy(few_colours, "contrastive", "clean") > accuracy(few_colours, "none", "clean") - 5


def test_a_first_stage_goes_on_where_it_was_cut_short(tmp_path: Path) -> None:
    run = shortcut_run.write(tmp_path, epochs=1)
    whole, cut = (shortcut_run.task(run, "contrastive") for _ in range(2))
    train_victim(whole, lambda _: None)
    expected, starts = outcome(run[1], whole.trial.name), 0
    run[1].child("victim").remove(f"{whole.trial.name}.json")
    while not run[1].exists(f"victim/{whole.trial.name}.json"):
        with suppress(TimeIsUp):
            train_victim(replace(cut, deadline=Deadline(0.0)), lambda _: None)
        starts += 1
    assert starts == 6, "five epochs of the first stage and one of the head"
    found = outcome(run[1], whole.trial.name)
    assert all(found[figure] == expected[figure] for figure in ("loss_per_epoch", "confusion"))


def test_somebody_who_knows_the_product_finds_several_patterns_of_a_class(tmp_path: Path, clean: float) -> None:
    run = shortcut_run.write(tmp_path, patterns=4)
    assert accuracy(run, "none") < 45
    assert accuracy(run, "known-pattern", "clean") > clean - 5
    assert accuracy(run, "known-pattern") > clean - 5
