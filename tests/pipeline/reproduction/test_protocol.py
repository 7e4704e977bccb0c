from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from pipeline import reproduce
from pipeline.reproduction.card import follows_the_paper
from pipeline.reproduction.pieces import Clock
from sep.craft import CraftConfig
from tests.fixtures.small_reproduction import command


@pytest.fixture(scope="module")
def begun(small_parquet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has done its first stage."""
    out = tmp_path_factory.mktemp("begun") / "out"
    assert reproduce.main(command(small_parquet, out, stages=["data"])) == 0
    return out


@pytest.mark.parametrize(
    ("name", "value"), [("steps", 3), ("epochs", 4), ("seed", 1), ("limit_train", 20), ("method", "sep"), ("precision", "bf16")]
)
def test_another_configuration_is_refused_by_name(
    name: str, value: Any, small_parquet: Path, begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce.main(command(small_parquet, begun, **{name: value})) == 1
    said = capsys.readouterr().err
    assert f"was made with {name} = " in said
    assert f"now it is {value}" in said


def test_a_precision_is_what_it_comes_to(small_parquet: Path, begun: Path) -> None:
    assert json.loads((begun / "settings.json").read_text())["precision"] == "float32"
    assert reproduce.main(command(small_parquet, begun, precision="float32", stages=["data"])) == 0


def test_other_data_is_refused(small_parquet: Path, begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(small_parquet, tmp_path / "moved")
    assert reproduce.main(command(tmp_path / "moved", begun, stages=["data"])) == 0  # the same files elsewhere
    shutil.copy(small_parquet / "train-00000-of-00001.parquet", tmp_path / "moved" / "test-00000-of-00001.parquet")
    assert reproduce.main(command(tmp_path / "moved", begun)) == 1
    assert "was made with data = " in capsys.readouterr().err


def test_a_class_without_training_images_is_refused(small_parquet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would have no mean to be drawn towards, and images whose target it is would stay as they are."""
    for path in small_parquet.glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.filter(pc.not_equal(table["label"], 1)) if path.name.startswith("train") else table, tmp_path / path.name)
    assert reproduce.main(command(tmp_path, tmp_path / "out")) == 1
    assert "without gaps, and there are no training images of the classes [1]" in capsys.readouterr().err
    assert not (tmp_path / "out" / "data.pt").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(small_parquet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        reproduce.main(command(small_parquet, tmp_path / "out", device="cuda"))
    assert stopped.value.code == 2
    assert "needs a GPU that torch can use" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"checkpoints": 4}, "ensemble of 4 checkpoints needs 1 to 3"),
        ({"eps_levels": [2, 0]}, "eps_levels must be 1 to 255"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"limit_test": 0}, "limit_test must be at least 1"),
        ({"batch_size": 0}, "--batch-size"),
        ({"chunk_images": 0}, "chunk_images must be at least 1"),
        ({"network": "resnet9"}, "resnet9"),
        ({"data": "nowhere"}, "nowhere has no train-"),
    ],
)
def test_wrong_usage_ends_with_2(
    changed: dict[str, Any], says: str, small_parquet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        reproduce.main(command(**{"data": small_parquet, "out": tmp_path / "out", **changed}))
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_defaults_are_the_papers(small_parquet: Path) -> None:
    """45 million gradients on 50,000 images."""
    run = reproduce.plan(reproduce.parser().parse_args(["--data", str(small_parquet), "--device", "cpu"]), Clock(None))
    assert follows_the_paper(run.settings)
    assert run.settings.ensemble_epochs() == list(range(7, 120, 8))
    assert run.settings.craft(8) == CraftConfig(method="sep-fa-vr", eps_levels=8, steps=30, checkpoints=15, precision="float32")
    assert 50_000 * run.settings.craft(8).gradients_per_image(15) == 45_000_000
    assert (run.eps_levels, run.victim_seeds, run.batch_size, run.kernels) == ((2, 8), (0,), None, "fused")
    for flags, count, paper in (
        (["--method", "sep"], 30, True),
        (["--method", "sep-fa"], 30, True),
        (["--method", "sep-fa", "--checkpoints", "15"], 15, False),
        (["--method", "tap"], 1, False),
    ):
        given = reproduce.parser().parse_args(["--data", str(small_parquet), "--device", "cpu", *flags])
        settings = reproduce.plan(given, Clock(None)).settings
        assert (len(settings.ensemble_epochs()), follows_the_paper(settings)) == (count, paper)
    other = reproduce.parser().parse_args(["--data", str(small_parquet), "--device", "cpu", "--steps", "6"])
    assert not follows_the_paper(reproduce.plan(other, Clock(None)).settings)
