"""What travels: the wheels that the page lists, the images, and the release there and back."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config.presets import preset
from pipeline.config.schema import RunConfig
from pipeline.shards.shard import read_shard
from pipeline.stages import pack, protect
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Manifest
from tests import ROOT
from tests.benchmarks.gpu import kit, release
from tests.fixtures.executors import LOCAL
from tests.system.test_bare_machine import wheels


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Folder]:
    """A run with a release at 2/255, by a method that needs no surrogate."""
    config = replace(preset("smoke"), run=str(tmp_path_factory.mktemp("released")))
    config = replace(config, protect=replace(config.protect, method="noise", eps_levels=2, checkpoints=None))
    folder = Folder.open(config.run)
    pack.execute(config, folder, LOCAL)
    protect.execute(config, folder, LOCAL)
    return config, folder


def test_the_release_comes_back_whole(released: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = released
    facts = release.pack(folder, tmp_path / "packed", most_bytes=20_000)
    assert len(facts["files"]) > 1
    assert max(facts["files"].values()) < 100_000
    assert json.loads((tmp_path / "packed" / "release.json").read_text()) == facts
    assert (facts["images"], facts["method"], facts["budget"]) == (80, "noise", {"norm": "linf", "limit": 2})

    other = Folder.open(str(tmp_path / "other"))  # another machine, with the same images
    pack.execute(replace(config, run=other.path), other, LOCAL)
    assert release.restore(tmp_path / "packed", other, tmp_path / "images") == 80
    files = {path.stem: path for path in (tmp_path / "images").rglob("*.png")}
    for stage, split in (("protect", "train"), ("pack", "test")):
        for shard in Manifest.load(folder, stage).shards[split]:
            for sample in read_shard(folder.child(stage), shard):
                assert np.array_equal(np.array(Image.open(files[sample.key])), sample.pixels)
                assert files.pop(sample.key).parts[-3] == split
    assert not files

    again = Folder.open(str(tmp_path / "again"))  # which the main job takes as images
    manifest = pack.execute(replace(config, run=again.path, data=str(tmp_path / "images")), again, LOCAL)
    assert (manifest.counts["train"], manifest.counts["test"]) == (80, 40)


def test_a_release_in_parts_or_of_other_images_is_refused(released: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = released
    release.pack(folder, tmp_path / "packed", most_bytes=20_000)
    sorted((tmp_path / "packed").glob("*.parquet"))[0].unlink()
    with pytest.raises(ValueError, match="get all its files"):
        release.restore(tmp_path / "packed", folder, tmp_path / "images")
    release.pack(folder, tmp_path / "packed")
    other = Folder.open(str(tmp_path / "other"))
    pack.execute(replace(config, run=other.path, seed=1), other, LOCAL)
    with pytest.raises(ValueError, match=r"was made from other images|has no image"):
        release.restore(tmp_path / "packed", other, tmp_path / "others")


def test_it_runs_from_the_command_line(released: tuple[RunConfig, Folder], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = released
    assert release.main(["pack", folder.path, str(tmp_path / "packed")]) == 0
    assert release.main(["restore", str(tmp_path / "packed"), folder.path, str(tmp_path / "images")]) == 0
    said = capsys.readouterr().out
    assert "80 images in 1 files" in said
    assert "80 protected images in" in said
    assert release.main(["pack", str(tmp_path), str(tmp_path / "none")]) == 1
    assert release.main([]) == 2


def test_the_wheels_are_those_that_the_page_lists(tmp_path: Path) -> None:
    assert {*kit.WHEELS} == wheels()
    assert kit.wheels(tmp_path)[-len(kit.WHEELS) :] == [*kit.WHEELS]


def test_ray_travels_without_its_large_parts(tmp_path: Path) -> None:
    kept, left = (
        ("ray/__init__.py", "ray/dashboard/head.py", "click/core.py"),
        ("ray/jars/a.jar", "ray/rllib/b.py", "ray/dashboard/client/c"),
    )
    for name in (*kept, *left):
        (tmp_path / "unpacked" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "unpacked" / name).touch()
    kit.pack(tmp_path / "unpacked", tmp_path / "ray.tgz")
    with tarfile.open(tmp_path / "ray.tgz") as archive:
        assert {entry.name for entry in archive if entry.isfile()} == {f"./{name}" for name in kept}
    for given in ([], ["images", "--ray"]):
        with pytest.raises(SystemExit):
            kit.main(given)


def test_images_and_sizes(tmp_path: Path) -> None:
    source, to = tmp_path / "source", tmp_path / "kit"
    source.mkdir()
    with pytest.raises(ValueError, match=r"no Parquet files in .*train-"):
        kit.images(source, to)
    (source / "train-0.parquet").write_bytes(bytes(2**20))
    (source / "README").touch()
    kit.images(source, to)
    assert [path.name for path in to.iterdir()] == ["train-0.parquet"]
    assert kit.mib([to, source / "train-0.parquet"]) == 2.0
    assert kit.mib(kit.tree()) < 10


def test_what_is_packed_is_not_a_part_of_the_tree() -> None:
    assert "/gpu-kit/" in (ROOT / ".gitignore").read_text().split()
