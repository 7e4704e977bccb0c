"""The release as other people get it: formats, what stays beside the pixels, and what a lossy format changes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from pipeline import export, verify
from pipeline.config.presets import preset
from pipeline.config.schema import ProtectConfig
from pipeline.operations.exported import Changes
from pipeline.shards.file_formats import LONGEST_SIDE, FileFormat, is_lossless
from pipeline.shards.pixels import Pixels
from pipeline.shards.shard import read_shard
from pipeline.shards.tables import read_table
from pipeline.stages import pack, protect
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Manifest
from sep.countermeasures.preprocessing import jpeg
from tests.fixtures import finished_run
from tests.fixtures.executors import LOCAL
from tests.fixtures.pictures import encoded, picture, write

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with protected images of one size."""
    path = tmp_path_factory.mktemp("finished") / "run"
    finished_run.write(path, stages=("pack", "surrogate", "protect"))
    return path


def exif(orientation: int) -> Image.Exif:
    """The EXIF of a photograph: who took it, where, which side is up, and a maker's preview."""
    found = Image.Exif()
    found[0x112], found[0x13B] = orientation, "Ann"
    found.get_ifd(0x8769)[0x927C] = b"a preview"
    found.get_ifd(0x8825)[1] = "N"
    return found


def smooth(seed: int, height: int = 24, width: int = 36) -> Image.Image:
    return Image.fromarray(picture(seed, 6, 6)).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of pictures in all formats, at their own size, protected by noise."""
    root = tmp_path_factory.mktemp("photos")
    files = {
        "turned.JPG": encoded(smooth(0), "jpeg", quality=61, subsampling=0, exif=exif(6), icc_profile=PROFILE),
        "upright.jpeg": encoded(smooth(1), "jpeg", quality=83, exif=exif(1)),
        "grey.jpg": encoded(smooth(2).convert("L"), "jpeg", quality=40),
        "plain.png": encoded(smooth(3)),
        "whole.webp": encoded(smooth(4), "webp", lossless=True),
        "lossy.webp": encoded(smooth(5), "webp", quality=70),
        "map.bmp": encoded(smooth(6), "bmp"),
        "false.jpg": encoded(smooth(7)),  # a PNG by its bytes
    }
    for c, name in enumerate("ab"):
        for file, content in files.items() if c else [("1.png", encoded(smooth(20)))]:
            write(root / "data" / name / file, content)
    config = replace(
        preset("smoke"),
        data=str(root / "data"),
        run=str(root / "run"),
        input_size=16,
        stages=("pack", "protect"),
        protect=ProtectConfig(method="noise"),
    )
    folder = Folder.open(config.run)
    pack.execute(config, folder, LOCAL)
    protect.execute(config, folder, LOCAL)
    return root


def samples(run: Path, stage: str) -> dict[str, Pixels]:
    """The levels of every released image, or of its original, by its key."""
    folder = Folder.open(str(run))
    shards = Manifest.load(folder, stage).shards["train"]
    return {sample.key: sample.pixels for shard in shards for sample in read_shard(folder.child(stage), shard)}


def record(to: Path) -> dict[str, Any]:
    return dict(json.loads(Path(f"{to}.export.json").read_text()))


def read(path: Path) -> Pixels:
    return np.array(Image.open(path).convert("RGB"))


def test_lossless_webp_has_the_levels_of_the_release(finished: Path, tmp_path: Path) -> None:
    to = tmp_path / "images"
    assert export.main(["--run", str(finished), "--to", str(to), "--format", "webp-lossless"]) == 0
    released = samples(finished, "protect")
    for key, (path, _) in record(to)["files"].items():
        assert Path(path).suffix == ".webp"
        assert np.array_equal(read(to / path), released[key])
    assert record(to)["lossy"] is None


def test_jpeg_is_that_of_the_view_and_its_changes_are_told(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "images"
    assert export.main(["--run", str(finished), "--to", str(to), "--format", "jpeg", "--quality", "75"]) == 0
    released, clean = samples(finished, "protect"), samples(finished, "pack")
    changes = []
    for key, (path, _) in record(to)["files"].items():
        assert Path(path).suffix == ".jpg"
        seen = jpeg(torch.from_numpy(released[key]).permute(2, 0, 1)[None], 75)[0].permute(1, 2, 0).numpy()
        assert np.array_equal(read(to / path), seen)
        changes.append(np.abs(seen.astype(int) - clean[key]).ravel())
    every = np.concatenate(changes)
    told = record(to)["lossy"]
    assert (told["files"], told["largest"]) == (36, every.max())
    assert told["percentile_99"] == np.percentile(every, 99, method="inverted_cdf")
    assert told["over_budget_percent"] == pytest.approx(100 * (every > 8).mean(), abs=1e-4)
    said = capsys.readouterr().out
    assert f"99 % of their values are within {told['percentile_99']} levels" in said
    assert "format jpeg-75" in said


def test_changes_are_counted_whole() -> None:
    changes, before = Changes(), np.zeros((10, 10, 1), np.uint8)
    assert changes.summary({"norm": "linf", "limit": 8}) is None
    after = before.copy()
    after[0, 0], after[0, 1] = 9, 4
    changes.add(after, before)
    assert changes.summary({"norm": "linf", "limit": 8}) == {"files": 1, "largest": 9, "percentile_99": 4, "over_budget_percent": 1.0}
    assert changes.summary({"norm": "pixels", "limit": 1}) == {"files": 1, "largest": 9, "percentile_99": 4, "over_budget_percent": None}


def test_as_source_gives_each_picture_the_form_of_its_file(photos: Path, tmp_path: Path) -> None:
    run, to = photos / "run", tmp_path / "images"
    assert export.main(["--run", str(run), "--to", str(to), "--format", "as-source"]) == 0
    assert sorted(path.name for path in (to / "b").iterdir()) == sorted(
        ["turned.JPG", "upright.jpeg", "grey.jpg", "plain.png", "whole.webp", "lossy.webp", "map.png", "false.jpg"]
    )
    assert not list(to.glob(".*"))
    sources = {name: Image.open(photos / "data" / "b" / name) for name in ("turned.JPG", "upright.jpeg")}
    for name, source in sources.items():
        assert Image.open(to / "b" / name).quantization == source.quantization  # type: ignore[attr-defined]
        assert Image.open(to / "b" / name).layer[0][1:3] == source.layer[0][1:3]  # type: ignore[attr-defined]  # the sampling of luma
    kinds = {path.name: (Image.open(path).format, is_lossless(path.read_bytes())) for path in (to / "b").iterdir()}
    assert kinds["grey.jpg"] == ("JPEG", False)
    assert kinds["whole.webp"] == ("WEBP", True)
    assert kinds["lossy.webp"] == ("WEBP", False)
    assert kinds["plain.png"] == kinds["map.png"] == ("PNG", True)
    released = samples(run, "protect")
    for key, (path, _) in record(to)["files"].items():
        assert read(to / path).shape == released[key].shape
        if is_lossless((to / path).read_bytes()):
            assert np.array_equal(read(to / path), released[key])


def test_metadata_stays_only_where_it_is_asked_for_and_turns_nothing(photos: Path, tmp_path: Path) -> None:
    run = photos / "run"
    for form in ("png", "webp-lossless", "jpeg", "as-source"):
        for flag in ("--no-keep-metadata", "--keep-metadata"):
            to = tmp_path / f"{form}{flag}"
            assert export.main(["--run", str(run), "--to", str(to), "--format", form, flag]) == 0
            (path,) = (to / "b").glob("turned.*")
            image = Image.open(path)
            assert image.size == (24, 36)  # upright
            assert image.info["icc_profile"] == PROFILE
            found = image.getexif()
            if flag == "--keep-metadata":
                assert (found[0x13B], found.get_ifd(0x8825)[1]) == ("Ann", "N")
            else:
                assert not found
            assert 0x112 not in found
            assert b"a preview" not in path.read_bytes()
            if form in ("png", "webp-lossless"):
                released, (key,) = samples(run, "protect"), [key for key, row in sources(run).items() if row.endswith("turned.JPG")]
                assert np.array_equal(read(path), released[key])


def sources(run: Path) -> dict[str, str]:
    table = read_table(Folder.open(str(run / "pack")), "samples.parquet", ["key", "source"]).to_pylist()
    return {row["key"]: row["source"] for row in table}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--quality", "80"], "--quality is of --format jpeg and as-source, and png loses nothing: leave it out"),
        (["--format", "webp-lossless", "--quality", "80"], "webp-lossless loses nothing"),
        (["--format", "jpeg", "--quality", "0"], "--quality must be from 1 to 100, got 0"),
        (["--format", "jpeg", "--quality", "101"], "--quality must be from 1 to 100, got 101"),
        (["--keep-metadata"], "packed without --input-size, as pixels alone"),
    ],
)
def test_flags_that_contradict_each_other_are_named(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert export.main(["--run", str(finished), "--to", str(tmp_path / "images"), *flags]) == 1
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_picture_too_large_for_a_format_is_named_and_nothing_is_left(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="WEBP takes 16383 pixels a side, not 1 x 16384"):
        FileFormat("WEBP", {"lossless": True}).encode(np.zeros((1, 16384, 3), np.uint8), {})
    monkeypatch.setitem(LONGEST_SIDE, "WEBP", 15)  # the pictures have 16
    assert export.main(["--run", str(finished), "--to", str(tmp_path / "images"), "--format", "webp-lossless"]) == 1
    assert "train/diagonal/0-0.png: WEBP takes 15 pixels a side, not 16 x 16: take another --format" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.faults
@pytest.mark.parametrize("form", ["png", "as-source"])
def test_the_audit_of_an_exported_folder_names_every_fault(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    run, to = str(photos / "run"), tmp_path / "images"
    assert export.main(["--run", run, "--to", str(to), "--format", form]) == 0
    capsys.readouterr()
    assert verify.main(["--run", run, "--exported", str(to)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"9 files in {to}, format {form}")
    assert said.endswith(": as recorded, no fault\n")
    victim = next((to / "b").glob("upright.*"))
    victim.write_bytes(encoded(smooth(1), "jpeg" if form == "as-source" else "png"))
    (to / "a" / "1.png").unlink()
    (to / "b" / "more.png").write_bytes(b"")
    assert verify.main(["--run", run, "--exported", str(to)]) == 1
    said = capsys.readouterr().out
    assert f"b/{victim.name}: its bytes are not those recorded" in said
    assert (f"b/{victim.name}: not the levels of the release" in said) is (form == "png")
    assert "a/1.png: missing" in said
    assert "b/more.png: not in the record" in said


def test_a_record_of_another_release_or_changes_is_a_fault(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, to = str(photos / "run"), tmp_path / "images"
    assert export.main(["--run", run, "--to", str(to), "--format", "jpeg"]) == 0
    written = record(to)
    place = Path(f"{to}.export.json")
    place.write_text(json.dumps({**written, "lossy": {**written["lossy"], "largest": 0}}))
    assert verify.main(["--run", run, "--exported", str(to)]) == 1
    assert "changes beside the originals come to" in capsys.readouterr().out
    place.write_text(json.dumps({**written, "release": "another"}))
    assert verify.main(["--run", run, "--exported", str(to)]) == 1
    assert "another release than the one that is in the run now" in capsys.readouterr().out
    place.unlink()
    assert verify.main(["--run", run, "--exported", str(to)]) == 1
    assert f"expected the record {place} beside the exported folder" in capsys.readouterr().err
