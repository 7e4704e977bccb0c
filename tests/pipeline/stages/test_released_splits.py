"""Test images in the release: those that were set aside always, those of the source's own test split if asked for."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import export, verify
from pipeline.config.presets import preset
from pipeline.config.schema import RunConfig, StageName
from pipeline.operations.verification import verify as audit
from pipeline.results.run_results import RunResults
from pipeline.results.summary import summary
from pipeline.shards.shard import read_shard
from pipeline.shards.tables import read_table
from pipeline.stages import pack, protect, victim
from pipeline.storage.folder import Folder
from pipeline.storage.layout import SAMPLES
from pipeline.storage.stage import Manifest
from sep.methods.registry import Method
from tests.fixtures.executors import LOCAL
from tests.fixtures.packed_run import write_checkpoints
from tests.fixtures.pictures import class_folders

CLASSES = {"ant": 6, "bee": 6, "cat": 6}


def config(root: Path, *, own_tests: bool = False, method: Method = "sep-fa", **protection: Any) -> RunConfig:
    """A source of 18 images, 6 of them set aside for testing, or of 18 with 6 test images of its own."""
    class_folders(root / "data", CLASSES, "train/" if own_tests else "", size=16)
    if own_tests:
        class_folders(root / "data", {name: 2 for name in CLASSES}, "test/", size=16)
    base = preset("smoke")
    stages: tuple[StageName, ...] = ("pack", "surrogate", "protect", "victim")
    return replace(
        base,
        data=str(root / "data"),
        run=str(root / "run"),
        stages=stages,
        pack=replace(base.pack, test_fraction=0.0 if own_tests else 0.33, shard_images=5),
        surrogate=replace(base.surrogate, epochs=3, batch_size=4),
        protect=replace(base.protect, method=method, **protection),
        victim=replace(base.victim, epochs=1, batch_size=4),
    )


def protected(asked: RunConfig) -> Folder:
    folder = Folder.open(asked.run)
    pack.execute(asked, folder, LOCAL)
    write_checkpoints(folder, ("resnet8",))
    protect.execute(asked, folder, LOCAL)
    return folder


def shards(folder: Folder, stage: str) -> Counter[str]:
    manifest = Manifest.load(folder, stage)
    return Counter({split: sum(shard.count for shard in listed) for split, listed in manifest.shards.items()})


def exported(folder: Folder, to: Path) -> dict[str, np.ndarray[Any, Any]]:
    assert export.main(["--run", folder.path, "--to", str(to)]) == 0
    return {str(path.relative_to(to)): np.asarray(Image.open(path)) for path in to.rglob("*.png")}


@pytest.mark.parametrize("method", ["sep-fa", "error-min", "error-min-class", "noise", "one-pixel"])
def test_images_that_were_set_aside_are_protected_and_released_like_the_others(
    method: Method, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = protected(config(tmp_path, method=method))
    assert shards(folder, "pack") == shards(folder, "protect") == {"train": 12, "test": 6}
    images = exported(folder, tmp_path / "images")
    assert sorted(images) == sorted(f"{name}/{i}.png" for name in CLASSES for i in range(6))
    changes = {name: np.abs(pixels.astype(int) - np.asarray(Image.open(tmp_path / "data" / name))).max() for name, pixels in images.items()}
    assert all(changes.values())
    said = capsys.readouterr().out
    assert "18 protected images" in said
    assert "6 of them are the images for testing, protected like the others" in said
    assert verify.main(["--run", folder.path]) == 0
    assert "18 protected images in " in capsys.readouterr().out


@pytest.mark.parametrize(("splits", "released"), [(("train",), {"train": 18}), (("train", "test"), {"train": 18, "test": 6})])
def test_of_a_source_with_test_images_the_owner_decides(
    splits: tuple[str, ...], released: dict[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = protected(config(tmp_path, own_tests=True, splits=splits))
    assert shards(folder, "protect") == released
    images = exported(folder, tmp_path / "images")
    assert len(images) == sum(released.values())
    assert {name.split("/")[0] for name in images} == ({"train", "test"} if len(splits) > 1 else set(CLASSES))
    said = capsys.readouterr().out
    assert ("--protect.splits train test protects them too" in said) == (len(splits) == 1)
    assert audit(folder).faults == ()


def test_victims_never_train_on_images_for_testing_and_are_measured_on_clean_ones(tmp_path: Path) -> None:
    asked = config(tmp_path)
    folder = protected(asked)
    victim.execute(asked, folder, LOCAL)
    before = read_table(folder.child("victim"), "results.parquet").to_pylist()
    for shard in Manifest.load(folder, "protect").shards["test"]:
        folder.child("protect").remove(shard.name)  # nobody reads these
    for name in folder.child("victim").names():
        folder.child("victim").remove(name)
    victim.execute(asked, folder, LOCAL)
    assert read_table(folder.child("victim"), "results.parquet").to_pylist() == before


def test_the_training_images_are_protected_as_without_the_others(tmp_path: Path) -> None:
    alone = protected(config(tmp_path / "one", own_tests=True))
    together = protected(config(tmp_path / "two", own_tests=True, splits=("train", "test")))
    assert Manifest.load(alone, "protect").shards["train"] == Manifest.load(together, "protect").shards["train"]
    rows = read_table(together.child("protect"), SAMPLES).to_pylist()
    assert len(rows) == 24


def test_what_is_wrong_with_a_released_test_image_is_named(tmp_path: Path) -> None:
    folder = protected(config(tmp_path))
    shard = Manifest.load(folder, "protect").shards["test"][0]
    sample = read_shard(folder.child("protect"), shard)[0]
    folder.child("protect").write(shard.name, folder.child("pack").read(shard.name))
    faults = audit(folder).faults
    assert any(fault.startswith(f"protect/{shard.name}: {sample.key} (") and "pixels are not those recorded" in fault for fault in faults)
    folder.child("protect").remove(shard.name)
    assert f"protect/{shard.name}: missing" in audit(folder).faults


def test_the_summary_says_what_is_in_the_release(tmp_path: Path) -> None:
    asked = config(tmp_path / "one")
    said = summary(asked, RunResults.read(protected(asked)))
    assert re.search(r"release +18 +images, 6 of them set aside for testing, protected like the others\n", said)
    asked = config(tmp_path / "two", own_tests=True)
    said = summary(asked, RunResults.read(protected(asked)))
    assert re.search(r"release +18 +images; the 6 for testing are not among them\n", said)


@pytest.mark.parametrize("splits", [(), ("test",), ("train", "train")])
def test_a_release_has_the_training_images_once(splits: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"protect\.splits"):
        config(tmp_path, splits=splits)
