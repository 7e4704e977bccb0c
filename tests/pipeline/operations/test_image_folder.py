from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import verify
from pipeline.export import main
from pipeline.operations.image_folder import export, names
from pipeline.shards.shard import decode_shard
from pipeline.shards.tables import read_table, rows_to_table, write_table
from pipeline.storage.file_names import safe
from pipeline.storage.folder import Folder
from pipeline.storage.records import sha256
from tests.fixtures import finished_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with protected images."""
    path = tmp_path_factory.mktemp("finished") / "run"
    finished_run.write(path, stages=("pack", "surrogate", "protect"))
    return path


def row(key: str, source: str, class_name: str = "cat") -> dict[str, Any]:
    return {"key": key, "class_name": class_name, "source": source}


def test_every_protected_image_comes_back_under_its_name(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "new" / "images"
    assert main(["--run", str(finished), "--to", str(to)]) == 0
    assert f"36 protected images in {to}, format png; 2 quarantined inputs are not among them" in capsys.readouterr().out
    clean = read_table(Folder.open(str(finished / "pack")), "samples.parquet").to_pylist()
    source_of = {row["key"]: Path(row["source"]) for row in clean}
    count = 0
    for shard in sorted((finished / "protect").glob("*.tar")):
        for sample in decode_shard(shard.read_bytes()):
            source = source_of[sample.key]
            written = to / finished_run.CLASSES[sample.label] / f"{source.stem}.png"
            assert written.read_bytes() == sample.image
            assert np.array_equal(np.asarray(Image.open(written)), sample.pixels)
            count += 1
    assert count == len([path for path in to.rglob("*") if path.is_file()]) == 36
    assert sorted(path.name for path in to.iterdir()) == sorted(finished_run.CLASSES)
    assert sorted(path.name for path in to.parent.iterdir()) == ["images", "images.export.json"]  # nothing half-built beside it


def test_names_are_the_original_ones() -> None:
    rows = [
        row("k0", "automobile/1690.jpg", "automobile"),
        row("k1", "train/n01443537/n01443537_0.JPEG", "n01443537"),
        row("k2", "file.parquet#12", "parquet"),
        row("k3", "a.tar.gz"),
    ]
    assert names(rows) == {
        "k0": "automobile/1690.png",
        "k1": "n01443537/n01443537_0.png",
        "k2": "parquet/file.png",
        "k3": "cat/a.tar.png",
    }


def test_names_that_would_collide_keep_their_extension_and_then_get_their_key() -> None:
    rows = [
        row("k0", "cat/a.jpg"),
        row("k1", "cat/a.png"),
        row("k2", "one/b.jpg"),
        row("k3", "two/b.jpg"),
        row("k4", "cat/A.JPG"),  # the same file on a system that ignores case
        row("k5", "cat/c.jpg"),
        row("k6", "dog/a.jpg", "dog"),
        row("k7", "file.parquet#1"),
        row("k8", "file.parquet#2"),
    ]
    chosen = names(rows)
    assert chosen == {
        "k0": "cat/a.jpg k0.png",
        "k1": "cat/a.png.png",
        "k2": "cat/b.jpg k2.png",
        "k3": "cat/b.jpg k3.png",
        "k4": "cat/A.JPG k4.png",
        "k5": "cat/c.png",
        "k6": "dog/a.png",
        "k7": "cat/file.parquet#1.png",
        "k8": "cat/file.parquet#2.png",
    }


def test_a_name_kept_for_another_reason_is_not_taken_twice() -> None:
    chosen = names([row("k0", "a.jpg"), row("k1", "a.png"), row("k2", "a.jpg.gif")])
    assert chosen == {"k0": "cat/a.jpg k0.png", "k1": "cat/a.png.png", "k2": "cat/a.jpg.png"}


@pytest.mark.parametrize(
    "hostile",
    ["../../etc/passwd", "..", "/etc/passwd", "..\\..\\boot.ini", "C:\\x.jpg", "a\0b", ".", "", "~root", "...", "x" * 5000, "é" * 300],
)
def test_no_name_leads_out_of_the_folder(hostile: str, tmp_path: Path) -> None:
    path = names([row("k", hostile, hostile)])["k"]
    folder, _, name = path.partition("/")
    for part in (folder, name, safe(hostile)):
        assert part not in ("", ".", "..")
        assert not set(part) & set('/\\:\0*?"<>|')
        assert len(part.encode()) < 255
    assert (tmp_path / path).resolve().is_relative_to(tmp_path)
    (tmp_path / folder).mkdir()
    (tmp_path / path).touch()


def test_classes_that_would_fall_together_are_refused() -> None:
    with pytest.raises(ValueError, match="'a/b', 'a:b'"):
        names([row("k0", "x.png", "a/b"), row("k1", "y.png", "a:b")])


def test_a_folder_with_anything_in_it_is_refused_and_an_empty_one_is_filled(finished: Path, tmp_path: Path) -> None:
    run, to = Folder.open(str(finished)), tmp_path / "images"
    to.mkdir()
    (to / "mine.txt").write_text("keep")
    assert main(["--run", str(finished), "--to", str(to)]) == 1
    assert [path.name for path in to.iterdir()] == ["mine.txt"]
    assert main(["--run", str(finished), "--to", str(to / "mine.txt")]) == 1
    (to / "mine.txt").unlink()
    assert len(export(run, Folder.open(str(to))).files) == 36


def test_a_link_to_an_empty_folder_stays_a_link(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "images").symlink_to("disk")
    (tmp_path / "later").symlink_to("other")  # where there is nothing yet
    for name in ("images", "later"):
        assert main(["--run", str(finished), "--to", str(tmp_path / name)]) == 0
        assert (tmp_path / name).is_symlink()
        assert len([path for path in (tmp_path / name).rglob("*") if path.is_file()]) == 36


@pytest.mark.parametrize("fixed_up", [False, True])
def test_an_altered_image_stops_the_export_and_leaves_nothing(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fixed_up: bool
) -> None:
    """The shard's digest shows it; if the manifest was changed to match the shard, the image's own digest does."""
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    shard = run / "protect/train-000001.tar"
    if fixed_up:
        shutil.copy(run / "pack/train-000001.tar", shard)
        path = run / "protect/manifest.json"
        manifest = json.loads(path.read_text())
        manifest["shards"]["train"][1]["sha256"] = sha256(shard.read_bytes())
        path.write_text(json.dumps(manifest))
    else:
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert main(["--run", str(run), "--to", str(tmp_path / "images")]) == 1
    line = capsys.readouterr().err
    assert "protect/train-000001.tar" in line
    assert (decode_shard(shard.read_bytes())[0].key in line) is fixed_up
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_unfinished_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished_run.write(tmp_path / "run", stages=("pack", "surrogate"))
    assert main(["--run", str(tmp_path / "run"), "--to", str(tmp_path / "images")]) == 1
    assert "'protect' has not finished" in capsys.readouterr().err


@pytest.mark.parametrize("command", [main, verify.main])
@pytest.mark.parametrize(("place", "found"), [("nowhere", "nothing, and no"), ("", "something without"), ("file", "something without")])
def test_a_place_without_a_run_is_named(
    command: Callable[[list[str]], int], place: str, found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no run")
    there = str(tmp_path / place)
    assert command(["--run", there, *(["--to", str(tmp_path / "images")] if command is main else [])]) == 1
    assert f"{there}: expected a run, as given to run.py by --run; found {found} pack/started.json" in capsys.readouterr().err


def test_hostile_names_in_a_run_stay_inside(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    folder = Folder.open(str(run / "pack"))
    table = read_table(folder, "samples.parquet")
    rows = [{**row, "source": "../../../" + row["source"], "class_name": "../" + row["class_name"]} for row in table.to_pylist()]
    write_table(folder, "samples.parquet", rows_to_table(rows, table.schema))
    before = {path for path in tmp_path.rglob("*") if run not in path.parents}
    assert len(export(Folder.open(str(run)), Folder.open(str(tmp_path / "images"))).files) == 36
    after = {path for path in tmp_path.rglob("*") if run not in path.parents} - before
    own = {tmp_path / "images", tmp_path / "images.export.json"}
    assert all(path in own or tmp_path / "images" in path.parents for path in after)
    assert len([path for path in after if path.is_file()]) == 36 + 1
