"""Images added to a finished run: the new ones and no others, labelled and protected as the run's own; the release stays as it is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.pool import Chain, WorkFailed
from pipeline import additions, pack, protect, verify
from pipeline.added import additions as listed
from pipeline.config import RunConfig
from pipeline.dataset import SourceError
from pipeline.export import export
from pipeline.presets import preset
from pipeline.shards import read_shard, read_table
from pipeline.stage import Manifest
from pipeline.storage import Folder
from tests.packed_run import digests, write_checkpoints
from tests.pictures import class_folders, encoded, picture, write

pytestmark = pytest.mark.ray


@pytest.fixture
def released(tmp_path: Path, ray_2_cpus: object) -> tuple[RunConfig, Folder]:
    """A finished run of twelve images in class folders."""
    class_folders(tmp_path / "data", {"ant": 4, "bee": 4, "cat": 4})
    base = preset("smoke")
    config = replace(
        base,
        data=str(tmp_path / "data"),
        run=str(tmp_path / "run"),
        surrogate=replace(base.surrogate, epochs=3),
        stages=("pack", "surrogate", "protect"),
        pack=replace(base.pack, shard_images=5),
        protect=replace(base.protect, method="sep-fa"),
    )
    folder = Folder.open(config.run)
    pack.run(config, folder)
    write_checkpoints(folder, ("resnet8",))
    protect.run(config, folder)
    return config, folder


def contents(folder: Folder) -> dict[str, bytes]:
    return {name: folder.read(name) for name in folder.names(recursive=True) if not name.startswith("added/")}


def labels(folder: Folder) -> dict[str, int]:
    """Label by original name, of everything that is packed there."""
    shards = Manifest.load(folder, "pack").shards["train"]
    return {json.loads(s.info)["source"]: s.label for shard in shards for s in read_shard(folder.child("pack"), shard)}


def test_images_that_came_later_are_protected_and_nothing_else_is_touched(released: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = released
    before = contents(folder)
    for name in ("bee/late.png", "cat/later.png"):
        write(tmp_path / "data" / name, encoded(picture(7, 8, 8)))
    grown = replace(config, add=config.data)
    manifest = additions.run(grown, folder)
    assert manifest is not None
    (added,) = listed(folder)
    assert labels(added) == {"bee/late.png": 1, "cat/later.png": 2}
    assert manifest.counts["images"] == 2
    assert 1 <= manifest.counts["linf_levels"] <= 8
    assert contents(folder) == before
    assert additions.run(grown, folder) is None  # the same again has nothing to do
    assert len(listed(folder)) == 1
    assert verify.main(["--run", config.run]) == 0
    assert export(added, Folder.open(str(tmp_path / "release"))) == 2
    assert sorted(path.name for path in (tmp_path / "release").rglob("*.png")) == ["late.png", "later.png"]


def test_an_added_image_is_crafted_as_the_run_would_have(released: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    """The same pixels from another place, in a shard of their own: same checkpoints, same means, same release."""
    config, folder = released
    means = folder.read("protect/class_means.pt")
    manifest = additions.run(replace(config, add=f"{tmp_path}/run/../data"), folder)
    assert manifest is not None
    (added,) = listed(folder)
    assert manifest.counts["images"] == 12  # another place: other images, whatever their names
    assert not added.exists("protect/class_means.pt")
    assert folder.read("protect/class_means.pt") == means

    def pixels(run: Folder) -> dict[str, bytes]:
        shards = Manifest.load(run, "protect").shards["train"]
        return {s.info.decode(): s.pixels.tobytes() for shard in shards for s in read_shard(run.child("protect"), shard)}

    assert pixels(added) == pixels(folder)
    keys = [set(read_table(run.child("pack"), "samples.parquet")["key"].to_pylist()) for run in (added, folder)]
    assert not keys[0] & keys[1]


def broken(task: protect.Task, shard: object, clean: object) -> None:
    raise ValueError("no luck")


def test_an_addition_cut_short_is_finished_before_another_begins(
    released: tuple[RunConfig, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = released
    class_folders(tmp_path / "more", {"ant": 3})
    class_folders(tmp_path / "other", {"bee": 2})
    with monkeypatch.context() as patch:
        patch.setattr(protect, "PROTECT", Chain(protect.read_clean, broken, protect.release))
        with pytest.raises(WorkFailed, match="no luck"):
            additions.run(replace(config, add=str(tmp_path / "more")), folder)
    with pytest.raises(ValueError, match=r"added/0001 was begun with --add .*more and is not finished"):
        additions.run(replace(config, add=str(tmp_path / "other")), folder)
    first = additions.run(replace(config, add=str(tmp_path / "more")), folder)
    second = additions.run(replace(config, add=str(tmp_path / "other")), folder)
    assert first is not None
    assert second is not None
    assert [addition.path[-4:] for addition in listed(folder)] == ["0001", "0002"]
    assert [len(labels(addition)) for addition in listed(folder)] == [3, 2]
    assert digests(first) != digests(second)


def test_what_does_not_fit_the_run_is_refused_and_leaves_nothing(released: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = released
    class_folders(tmp_path / "strange", {"ant": 1, "dog": 1})
    with pytest.raises(SourceError, match="the run has no class dog; its classes are ant, bee, cat"):
        additions.run(replace(config, add=str(tmp_path / "strange")), folder)
    class_folders(tmp_path / "large", {"ant": 1, "bee": 1}, size=9)
    with pytest.raises(SourceError, match=r"images are 9x9 .*those of the run 8x8"):
        additions.run(replace(config, add=str(tmp_path / "large")), folder)
    assert listed(folder) == []


def test_an_addition_to_another_release_is_a_fault(
    released: tuple[RunConfig, Folder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = released
    class_folders(tmp_path / "more", {"ant": 3})
    additions.run(replace(config, add=str(tmp_path / "more")), folder)
    protect.run(replace(config, overwrite=True, protect=replace(config.protect, eps_levels=4)), folder)
    assert verify.main(["--run", config.run]) == 1
    assert "added/0001: protect/manifest.json: made with another release of the run" in capsys.readouterr().out
