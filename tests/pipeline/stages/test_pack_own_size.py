"""Packing pictures at their own size: as they came where that is exact, in shards of about as many pixels."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo

from pipeline.config.schema import PackConfig, RunConfig
from pipeline.shards.pixels import LAST_CHUNK, colour_profile, decode_whole, extension
from pipeline.shards.shard import Sample, read_shard
from pipeline.shards.sizes import image_bytes
from pipeline.shards.tables import read_table
from pipeline.sources import decoding
from pipeline.sources.dataset import Entry
from pipeline.sources.scan import scan
from pipeline.sources.sharding import images_by_shard
from pipeline.stages.pack import execute
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Manifest
from tests.fixtures.executors import LOCAL
from tests.fixtures.pictures import class_folders, encoded, picture, write

SIZES = ((24, 36), (40, 22), (31, 31))


def photos(root: Path, each: int = 3) -> None:
    """Pictures of three sizes in two classes."""
    for c, name in enumerate("ab"):
        for i in range(each):
            write(root / name / f"{i}.jpg", encoded(picture(10 * c + i, *SIZES[i % 3]), "jpeg"))


def pack(data: Path, to: Path, input_size: int | None = 16, **settings: Any) -> tuple[Manifest, dict[str, Sample]]:
    config = RunConfig(data=str(data), run=str(to), stages=("pack",), input_size=input_size, pack=PackConfig(**settings))
    folder = Folder.open(str(to))
    manifest = execute(config, folder, LOCAL)
    samples = [s for shards in manifest.shards.values() for shard in shards for s in read_shard(folder.child("pack"), shard)]
    sources = {row["key"]: row["source"] for row in read_table(folder.child("pack"), "samples.parquet").to_pylist()}
    return manifest, {sources[sample.key]: sample for sample in samples}


def test_pictures_are_stored_as_they_came_where_that_is_exact(tmp_path: Path) -> None:
    data, levels = tmp_path / "data", picture(9, 20, 33)
    photos(data)
    kept = {
        "a/plain.png": encoded(levels),
        "a/plain.webp": encoded(levels, "webp", lossless=True),
        "a/upright.jpg": encoded(levels, "jpeg", exif=_orientation(1)),
        "a/turned.jpg": encoded(levels, "jpeg", exif=_orientation(6)),
    }
    changed = {
        "b/grey.jpg": encoded(Image.fromarray(levels).convert("L"), "jpeg"),
        "b/clear.png": encoded(Image.fromarray(np.dstack([levels, levels[..., 0]]))),
        "b/map.bmp": encoded(levels, "bmp"),
        "b/moving.webp": encoded(Image.fromarray(levels), "webp", save_all=True, append_images=[Image.fromarray(picture(8, 20, 33))]),
    }
    for name, content in {**kept, **changed}.items():
        write(data / name, content)
    for name in "ab":
        write(data.with_name("source") / "test" / name / "large.png", encoded(picture(1, 40, 36)))
    data = data.rename(data.with_name("source") / "train")
    manifest, samples = pack(data.parent, tmp_path / "run")
    tests = [samples.pop(name) for name in sorted(samples) if name.startswith("test/")]
    samples = {name.removeprefix("train/"): sample for name, sample in samples.items()}
    for name, sample in samples.items():
        if name in changed:
            assert extension(sample.image) == "png", name
        else:
            assert sample.image == (data / name).read_bytes(), name
        assert np.array_equal(sample.pixels, np.array(ImageOps.exif_transpose(Image.open(data / name)).convert("RGB"))) or name in changed
    assert samples["a/turned.jpg"].pixels.shape == (33, 20, 3)
    counts = manifest.counts
    assert (counts["height"], counts["width"], counts["sizes"], counts["shortest"]) == (40, 36, 6, 20)
    held = [sample.pixels.nbytes for sample in samples.values()]  # of the images for training
    assert len(tests) == 2
    assert image_bytes(counts) == pytest.approx(np.mean(held))
    rows = {
        row["source"].removeprefix("train/"): row
        for row in read_table(Folder.open(str(tmp_path / "run")).child("pack"), "samples.parquet").to_pylist()
    }
    assert all((rows[name]["height"], rows[name]["width"]) == sample.pixels.shape[:2] for name, sample in samples.items())
    with tarfile.open(tmp_path / "run" / "pack" / "train-000000.tar") as tar:
        assert {Path(name).suffix for name in tar.getnames()} == {".jpg", ".webp", ".png", ".json", ".cls"}


def _orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x112] = value
    return exif


def test_pictures_of_one_size_are_packed_as_ever_without_an_input_size_and_as_they_came_with_one(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / "data" / name / "1.jpg", encoded(picture(3, 6, 9), "jpeg"))
    manifest, samples = pack(tmp_path / "data", tmp_path / "plain", None)
    assert {extension(sample.image) for sample in samples.values()} == {"png"}
    assert {"sizes", "pixels", "shortest"}.isdisjoint(manifest.counts)
    manifest, samples = pack(tmp_path / "data", tmp_path / "own")
    assert {extension(sample.image) for sample in samples.values()} == {"jpg"}
    assert manifest.counts["sizes"] == 1
    manifest, samples = pack(tmp_path / "data", tmp_path / "cut", size=6)
    assert {sample.pixels.shape for sample in samples.values()} == {(6, 6, 3)}
    assert "sizes" not in manifest.counts


def test_shards_have_about_as_many_pixels_each(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 20, "b": 20}, size=4)
    dataset = scan(RunConfig(data=str(tmp_path), stages=("pack",)))
    pixels = {entry.key: 1000 if number % 4 else 9000 for number, entry in enumerate(dataset.entries)}
    shards = images_by_shard(dataset, 10, pixels)
    assert [entry for some in shards.values() for entry in some] == dataset.split("train")
    held = [sum(pixels[entry.key] for entry in some) for some in shards.values()]
    wanted = sum(pixels.values()) / 4
    assert all(abs(count - wanted) <= 9000 for count in held[:-1])
    assert max(map(len, shards.values())) <= 10
    assert [len(some) for some in images_by_shard(dataset, 16).values()] == [16, 16, 8]


def test_a_picture_larger_than_a_shard_has_one_of_its_own(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 3, "b": 3}, size=4)
    dataset = scan(RunConfig(data=str(tmp_path), stages=("pack",)))
    first: Entry = dataset.split("train")[2]
    shards = images_by_shard(dataset, 250, {entry.key: 2**28 if entry is first else 100 for entry in dataset.entries})
    assert [first] in shards.values()


def test_a_picture_that_is_next_to_a_line_is_refused(tmp_path: Path) -> None:
    photos(tmp_path / "data")
    write(tmp_path / "data" / "a" / "line.png", encoded(picture(1, 2, 101)))
    manifest, samples = pack(tmp_path / "data", tmp_path / "run")
    assert (manifest.counts["quarantined"], len(samples)) == (1, 6)
    (row,) = read_table(Folder.open(str(tmp_path / "run")).child("pack"), "quarantine.parquet").to_pylist()
    assert row["reason"].startswith("2 x 101 pixels: more than 50 times as long as wide")


def test_a_restart_packs_the_same_shards(tmp_path: Path) -> None:
    photos(tmp_path / "data", 6)
    digests = []
    for name in "xy":
        manifest, _ = pack(tmp_path / "data", tmp_path / name, shard_images=5)
        digests.append([shard.sha256 for shard in manifest.shards["train"]])
    assert digests[0] == digests[1]
    path = tmp_path / "x" / "pack" / "manifest.json"
    path.unlink()
    again, _ = pack(tmp_path / "data", tmp_path / "x", shard_images=5)
    assert [hashlib.sha256((path.parent / shard.name).read_bytes()).hexdigest() for shard in again.shards["train"]] == digests[1]


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("damage", ["checksum of a text after the pixels", "bytes after the end", "no end", "a text too large to unpack"])
def test_what_lies_beside_the_pixels_costs_no_picture(damage: str) -> None:
    """It is stored as a PNG that is whole, with its colours."""
    pixels = picture(1, 12, 9)
    whole = encoded(pixels, icc_profile=PROFILE)
    text = PngInfo()
    text.add_text("note", "x" * 2**21, zip=True)
    end = len(LAST_CHUNK)
    data = {
        "checksum of a text after the pixels": whole[:-end] + b"\0\0\0\1tEXtx" + bytes(4) + whole[-end:],
        "bytes after the end": whole + b"more",
        "no end": whole[:-end],
        "a text too large to unpack": encoded(pixels, icc_profile=PROFILE, pnginfo=text),
    }[damage]
    decoded = decoding.decode(data, 1000)
    assert decoding.pixels_in(data) == 12 * 9
    stored = decoding.stored(data, decoded)
    assert np.array_equal(decode_whole(stored), pixels)
    assert np.array_equal(decoded, pixels)
    assert colour_profile(stored) == PROFILE or damage == "a text too large to unpack"
    assert decoding.stored(whole, pixels) == whole
