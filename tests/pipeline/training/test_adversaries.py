"""Adversaries who train otherwise: they learn from a release that defeats an ordinary training, and lose next to nothing on clean images."""

from __future__ import annotations

import pytest
import torch

from pipeline.config.schema import RunConfig
from pipeline.storage.folder import Folder
from pipeline.training.states import to_bytes
from tests.fixtures import shortcut_run
from tests.fixtures.shortcut_run import accuracy

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


@pytest.mark.parametrize("name", ["pretrained", "pretrained-frozen"])
def test_it_wins_back_what_an_ordinary_training_loses(run: Run, clean: float, name: str) -> None:
    assert accuracy(run, name, "clean") > clean - 5
    assert accuracy(run, name) > 80
