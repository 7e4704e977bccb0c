"""Images added to a finished run: only new ones, labelled and protected as the run's own, and no change to its release."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.work import Chain, WorkFailed
from pipeline import verify
from pipeline.config.presets import preset
from pipeline.config.schema import RunConfig
from pipeline.operations.image_folder import export
from pipeline.protection import crafting, release
from pipeline.shards.shard import read_shard
from pipeline.shards.tables import read_table
from pipeline.sources.dataset import SourceError
from pipeline.stages import addition, pack, protect
from pipeline.storage.folder import Folder
from pipeline.storage.run import additions
from pipeline.storage.stage import Manifest, Shard
from tests.fixtures.executors import LOCAL
from tests.fixtures.packed_run import digests, write_checkpoints
from tests.fixtures.pictures import class_folders, encoded, picture, write


@pytest.fixture
def released(tmp_path: Path) -> tuple[RunConfig, Folder]:
    """A finished run of twelve images in class folders."""
    class_folders(tmp_path / "data", {"ant": 4, "bee": 4, "cat": 4})
    base = preset("smoke")
    config = replace(
        base,
        data=str(tmp_path / "data"),
        run=str(tmp_path / "run"),
        surrogate=replace(base.surrogate, epochs=3, batch_size=4),
        stages=("pack", "surrogate", "protect"),
        pack=replace(base.pack, shard_images=5),
        protect=replace(base.protect, method="sep-fa"),
    )
    folder = Folder.open(config.run)
    pack.execute(config, folder, LOCAL)
    write_checkpoints(folder, ("resnet8",))
    protect.execute(config, folder, LOCAL)
    return config, folder


def contents(folder: Folder) -> dict[str, bytes]:
    return {name: folder.read(name) for name in folder.names(recursive=True) if not name.startswith("added/")}


def labels(folder: Folder) -> dict[str, int]:
    """Return the labels of all images packed there, by original name."""
    shards = Manifest.load(folder, "pack").shards["train"]
    return {json.loads(s.info)["source"]: s.label for shard in shards for s in read_shard(folder.child("pack"), shard)}


def test_images_that_came_later_are_protected_and_nothing_else_is_touched(released: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = released
    before = contents(folder)
    for name in ("bee/late.png", "cat/later.png"):
        write(tmp_path / "data" / name, encoded(picture(7, 8, 8)))
    grown = replace(config, add=config.data)
    manifest = addition.execute(grown, folder, LOCAL)
    assert manifest is not None
    (added,) = additions(folder).values()
    assert labels(added) == {"bee/late.png": 1, "cat/later.png": 2}
    assert manifest.counts["images"] == 2
    assert 1 <= manifest.counts["linf_levels"] <= 8
    assert contents(folder) == before
    assert addition.execute(grown, folder, LOCAL) is None  # nothing is left to do
    assert len(additions(folder)) == 1
    assert verify.main(["--run", config.run]) == 0
    assert len(export(added, Folder.open(str(tmp_path / "release"))).files) == 2
    assert sorted(path.name for path in (tmp_path / "release").rglob("*.png")) == ["late.png", "later.png"]


def test_an_added_image_is_crafted_as_the_run_would_have(released: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    """Take the same pixels from another place, in their own shard: the same checkpoints and means give the same release."""
    config, folder = released
    means = folder.read("protect/prepared/every-shard.pt")
    manifest = addition.execute(replace(config, add=f"{tmp_path}/run/../data"), folder, LOCAL)
    assert manifest is not None
    (added,) = additions(folder).values()
    assert manifest.counts["images"] == 12  # images from another place are other images, even with the same names
    assert not added.exists("protect/prepared/every-shard.pt")
    assert folder.read("protect/prepared/every-shard.pt") == means

    def pixels(run: Folder) -> dict[str, bytes]:
        shards = Manifest.load(run, "protect").shards["train"]
        return {s.info.decode(): s.pixels.tobytes() for shard in shards for s in read_shard(run.child("protect"), shard)}

    assert pixels(added) == pixels(folder)
    keys = [set(read_table(run.child("pack"), "samples.parquet")["key"].to_pylist()) for run in (added, folder)]
    assert not keys[0] & keys[1]


def broken(task: crafting.CraftingTask, shard: object, clean: object) -> None:
    raise ValueError("no luck")


def test_an_addition_cut_short_is_finished_before_another_begins(
    released: tuple[RunConfig, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = released
    class_folders(tmp_path / "more", {"ant": 3})
    class_folders(tmp_path / "other", {"bee": 2})
    with monkeypatch.context() as patch:
        patch.setattr(protect, "PROTECT", Chain(release.read_clean, broken, release.release))
        with pytest.raises(WorkFailed, match="no luck"):
            addition.execute(replace(config, add=str(tmp_path / "more")), folder, LOCAL)
    with pytest.raises(ValueError, match=r"added/0001 was begun with --add .*more and is not finished"):
        addition.execute(replace(config, add=str(tmp_path / "other")), folder, LOCAL)
    assert verify.main(["--run", config.run]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("12 protected images in 3 shards")
    assert said[1].startswith("added/0001: stage 'protect' has not finished")
    first = addition.execute(replace(config, add=str(tmp_path / "more")), folder, LOCAL)
    second = addition.execute(replace(config, add=str(tmp_path / "other")), folder, LOCAL)
    assert first is not None
    assert second is not None
    assert list(additions(folder)) == ["added/0001", "added/0002"]
    assert [len(labels(addition)) for addition in additions(folder).values()] == [3, 2]
    assert digests(first) != digests(second)


def unlucky(task: crafting.CraftingTask, shard: Shard, clean: release.Clean) -> release.Crafted:
    if shard.name == "train-000000.tar":
        raise ValueError("no luck")
    return release.craft_chosen(task, shard, clean)


def test_shards_that_an_addition_lacks_are_tried_again(
    released: tuple[RunConfig, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = released
    class_folders(tmp_path / "more", {"ant": 3, "bee": 4})
    class_folders(tmp_path / "other", {"bee": 2})
    more = replace(config, add=str(tmp_path / "more"), keep_going=True)
    with monkeypatch.context() as patch:
        patch.setattr(protect, "PROTECT", Chain(release.read_clean, unlucky, release.release))
        first = addition.execute(more, folder, LOCAL)
    assert first is not None
    assert first.missing == ["train-000000.tar"]
    other = addition.execute(replace(config, add=str(tmp_path / "other")), folder, LOCAL)  # need not wait for the unfinished addition
    again = addition.execute(more, folder, LOCAL)
    assert other is not None
    assert again is not None
    assert again.missing == []
    assert [Manifest.load(addition, "protect").counts["images"] for addition in additions(folder).values()] == [7, 2]
    assert verify.main(["--run", config.run]) == 0
    assert addition.execute(more, folder, LOCAL) is None


def test_neither_test_images_nor_refused_ones_are_taken_for_new_ones(tmp_path: Path) -> None:
    base = preset("smoke")
    class_folders(tmp_path / "data", {"ant": 6, "bee": 6})
    write(tmp_path / "data/ant/broken.png", b"no image")
    config = replace(
        base,
        data=str(tmp_path / "data"),
        run=str(tmp_path / "run"),
        surrogate=replace(base.surrogate, epochs=3, batch_size=4),
        victim=replace(base.victim, batch_size=4),
        pack=replace(base.pack, test_fraction=0.3),
    )
    folder = Folder.open(config.run)
    packed = pack.execute(config, folder, LOCAL).counts
    assert packed["test"] > 0
    assert packed["quarantined"] == 1
    write_checkpoints(folder, ("resnet8",))
    protect.execute(config, folder, LOCAL)
    grown = replace(config, add=config.data)
    assert addition.execute(grown, folder, LOCAL) is None
    write(tmp_path / "data/bee/late.png", encoded(picture(7, 8, 8)))
    assert addition.execute(grown, folder, LOCAL) is not None
    (added,) = additions(folder).values()
    assert labels(added) == {"bee/late.png": 1}


def test_what_does_not_fit_the_run_is_refused_and_leaves_nothing(released: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = released
    class_folders(tmp_path / "strange", {"ant": 1, "dog": 1})
    with pytest.raises(SourceError, match="the run has no class dog; its classes are ant, bee, cat"):
        addition.execute(replace(config, add=str(tmp_path / "strange")), folder, LOCAL)
    class_folders(tmp_path / "large", {"ant": 1, "bee": 1}, size=9)
    with pytest.raises(SourceError, match=r"images are 9x9 .*those of the run 8x8"):
        addition.execute(replace(config, add=str(tmp_path / "large")), folder, LOCAL)
    assert additions(folder) == {}


def test_an_addition_to_another_release_is_a_fault(
    released: tuple[RunConfig, Folder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = released
    class_folders(tmp_path / "more", {"ant": 3})
    addition.execute(replace(config, add=str(tmp_path / "more")), folder, LOCAL)
    protect.execute(replace(config, overwrite=True, protect=replace(config.protect, eps_levels=4)), folder, LOCAL)
    assert verify.main(["--run", config.run]) == 1
    assert "added/0001: protect/manifest.json: made with another release of the run" in capsys.readouterr().out
