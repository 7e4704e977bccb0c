from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.config.schema import PackConfig, RunConfig, to_tree
from pipeline.shards.finished_shards import read_finished_shard
from pipeline.shards.pixels import Statistics, pixels_sha256
from pipeline.shards.shard import Sample, read_shard
from pipeline.shards.tables import read_table
from pipeline.sources.dataset import SourceError
from pipeline.sources.scan import scan
from pipeline.sources.sharding import images_by_shard
from pipeline.stages.pack import execute, pack_shard
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Manifest, Stage
from tests.fixtures.executors import LOCAL
from tests.fixtures.pictures import class_folders, encoded, picture, raw_png, write

NO_TEST: dict[str, Any] = {"stages": ("pack",)}


def pack(data: Path | str, to: Path, **settings: Any) -> Manifest:
    pack_settings = settings.pop("pack", {})
    config = RunConfig(data=str(data), run=str(to), pack=PackConfig(**pack_settings), **{**NO_TEST, **settings})
    return execute(config, Folder.open(str(to)), LOCAL)


def samples(to: Path, manifest: Manifest) -> dict[str, Sample]:
    folder = Folder.open(str(to)).child("pack")
    return {s.key: s for shards in manifest.shards.values() for shard in shards for s in read_shard(folder, shard)}


def test_bad_input_is_quarantined_with_its_reason_and_the_rest_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data, photo = tmp_path / "data", encoded(picture(9, 40, 60), "jpeg")
    class_folders(data, {"a": 3, "b": 3}, size=32)
    write(data / "a" / "text.jpg", b"this is no picture")
    write(data / "a" / "truncated.jpg", photo[: len(photo) // 2])
    write(data / "a" / "zero.png", b"")
    write(data / "a" / "bomb.png", raw_png(30_000, 30_000, 1, 0, bytes(3750)))
    write(data / "b" / "cmyk.jpg", encoded(Image.fromarray(picture(8, 32, 48)).convert("CMYK"), "jpeg"))
    write(data / "b" / "deep.png", encoded(Image.fromarray(np.full((32, 32), 257 * 50, np.uint16))))
    write(data / "b" / "moving.gif", encoded(Image.new("P", (32, 32)), "gif", save_all=True, append_images=[Image.new("P", (32, 32), 1)]))
    with caplog.at_level(logging.INFO, "pipeline"):
        manifest = pack(data, tmp_path / "run", pack={"size": 32})

    assert (manifest.counts["train"], manifest.counts["test"], manifest.counts["quarantined"]) == (9, 0, 4)
    assert "packed 9 train, 0 test images of 2 classes; 4 quarantined (see " in caplog.text
    folder = Folder.open(str(tmp_path / "run")).child("pack")
    quarantine = {row["source"]: row["reason"] for row in read_table(folder, "quarantine.parquet").to_pylist()}
    assert list(quarantine) == ["a/bomb.png", "a/text.jpg", "a/truncated.jpg", "a/zero.png"]
    assert [quarantine[f"a/{n}"].split()[0] for n in ("bomb.png", "text.jpg", "truncated.jpg", "zero.png")] == [
        "more",
        "not",
        "truncated",
        "zero",
    ]
    rows = {row["source"]: row for row in read_table(folder, "samples.parquet").to_pylist()}
    packed = samples(tmp_path / "run", manifest)
    assert packed[rows["b/deep.png"]["key"]].pixels.tolist() == np.full((32, 32, 3), 50).tolist()
    assert packed[rows["a/1.png"]["key"]].pixels.tolist() == picture(1, 32, 32).tolist()


def test_tables_shards_and_statistics_agree_with_the_images(tmp_path: Path) -> None:
    data = tmp_path / "data"
    class_folders(data, {"x": 7, "y": 9}, "train/")
    class_folders(data, {"x": 2, "y": 3}, "test/")
    manifest = pack(data, tmp_path / "run", pack={"shard_images": 6})
    folder = Folder.open(str(tmp_path / "run")).child("pack")
    packed, rows = samples(tmp_path / "run", manifest), read_table(folder, "samples.parquet").to_pylist()
    assert list(packed) == [r["key"] for r in sorted(rows, key=lambda r: (r["split"] != "train", r["shard"]))]
    assert [s.count for s in manifest.shards["train"]] == [6, 6, 4]
    assert [s.name for s in manifest.shards["test"]] == ["test-000000.tar"]
    for row in rows:
        sample = packed[row["key"]]
        original = np.array(Image.open(data / row["source"]))
        assert sample.pixels.tolist() == original.tolist()
        assert (sample.label, row["label"], row["class_name"]) == ("xy".index(row["class_name"]),) * 2 + (row["class_name"],)
        assert row["source"].split("/")[:2] == [row["split"], row["class_name"]]
        assert json.loads(sample.info) == {"class_name": row["class_name"], "source": row["source"]}
        assert (row["sha256"], row["height"], row["width"]) == (pixels_sha256(original), 8, 8)
    train = np.concatenate([packed[r["key"]].pixels.reshape(-1, 3) for r in rows if r["split"] == "train"])
    np.testing.assert_allclose(manifest.counts["mean"], train.mean(0), rtol=1e-12)
    np.testing.assert_allclose(manifest.counts["std"], train.std(0), rtol=1e-12)
    assert manifest.counts["classes"] == ["x", "y"]
    assert sorted(folder.names(recursive=True)) == sorted(
        [s.name for shards in manifest.shards.values() for s in shards]
        + ["manifest.json", "quarantine.parquet", "samples.parquet", "started.json"]
    )


def test_another_seed_packs_other_shards(tmp_path: Path) -> None:
    settings = {"pack": {"max_train_images": 60, "max_test_images": 20, "shard_images": 20}}
    one, other = (pack("generated", tmp_path / str(seed), seed=seed, **settings) for seed in (0, 1))
    assert other.shards["train"][0].sha256 != one.shards["train"][0].sha256


def test_a_restart_makes_only_what_is_missing_or_damaged(tmp_path: Path) -> None:
    """As after the death of the driver, without a manifest: one shard is untouched, one truncated, one altered, one from elsewhere."""
    class_folders(tmp_path / "data", {"a": 25, "b": 25})
    settings = {"pack": {"shard_images": 10}}
    whole = pack(tmp_path / "data", tmp_path / "whole", **settings)
    config = RunConfig(data=str(tmp_path / "data"), run=str(tmp_path / "run"), pack=PackConfig(shard_images=10), **NO_TEST)
    stage = Stage(Folder.open(config.run), "pack", section={"data": config.data, **to_tree(config.pack)}, seed=0)
    dataset = scan(config)
    for name, entries in images_by_shard(dataset, 10).items():
        chosen = entries[1:] if name == "train-000003.tar" else entries
        pack_shard(stage.folder, name, chosen, dataset.classes, dataset.reader, config.pack, stage.hash)
    folder = tmp_path / "run" / "pack"
    (folder / "parts" / "train-000001.tar.json").unlink()
    (folder / "train-000002.tar").write_bytes((folder / "train-000002.tar").read_bytes().replace(b'"source"', b'"SOURCE"', 1))
    write(folder / "train-000009.tar", b"of images that are gone")
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.tar")}

    restarted = pack(tmp_path / "data", tmp_path / "run", **settings)
    rewritten = {path.name for path in folder.glob("*.tar") if path.stat().st_mtime_ns != before[path.name]}
    assert rewritten == {"train-000001.tar", "train-000002.tar", "train-000003.tar"}
    assert restarted.shards == whole.shards
    assert restarted.counts == whole.counts
    assert not (folder / "train-000009.tar").exists()
    assert not (folder / "parts").exists()

    shutil.rmtree(tmp_path / "data")  # a finished stage does not look at its source
    assert pack(tmp_path / "data", tmp_path / "run", **settings) == restarted


def test_a_part_counts_only_for_what_it_was_made_from(tmp_path: Path) -> None:
    class_folders(tmp_path / "data", {"a": 2, "b": 2})
    config = RunConfig(data=str(tmp_path / "data"), **NO_TEST)
    dataset, folder = scan(config), Folder.open(str(tmp_path / "pack"))
    made = pack_shard(folder, "train-000000.tar", dataset.entries, dataset.classes, dataset.reader, config.pack, "one")
    made_from = json.loads(folder.read("parts/train-000000.tar.json"))["made_from"]
    assert read_finished_shard(folder, "train-000000.tar", made_from) == made
    assert read_finished_shard(folder, "train-000000.tar", "something else") is None
    assert read_finished_shard(folder, "train-000001.tar", made_from) is None
    for name in ("train-000000.tar", "parts/train-000000.tar.parquet", "parts/train-000000.tar.json"):
        whole = folder.read(name)
        folder.write(name, whole[:-10])
        assert read_finished_shard(folder, "train-000000.tar", made_from) is None, name
        folder.write(name, whole)
    assert read_finished_shard(folder, "train-000000.tar", made_from) == made
    record = folder.read("parts/train-000000.tar.json")
    folder.write("parts/train-000000.tar.json", record.replace(b'"count": 4', b'"count": 5'))
    assert read_finished_shard(folder, "train-000000.tar", made_from) is None


def test_mixed_sizes_stop_the_run_and_leave_nothing(tmp_path: Path) -> None:
    class_folders(tmp_path / "data", {"a": 3, "b": 3})
    write(tmp_path / "data" / "a" / "wide.png", encoded(picture(3, 8, 9)))
    with pytest.raises(SourceError, match=r"8x8 \(6 images\), 8x9 \(1 images\): give --input-size N .* or --pack.size N "):
        pack(tmp_path / "data", tmp_path / "run")
    assert not (tmp_path / "run" / "pack").exists()
    assert pack(tmp_path / "data", tmp_path / "run", pack={"size": 8}).counts["train"] == 7


def test_one_size_need_not_be_square(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / "data" / name / "1.png", encoded(picture(3, 6, 9)))
    counts = pack(tmp_path / "data", tmp_path / "run").counts
    assert (counts["height"], counts["width"]) == (6, 9)


def test_a_class_whose_images_were_all_refused_is_named_with_the_reason(tmp_path: Path) -> None:
    class_folders(tmp_path / "data", {"a": 3})
    write(tmp_path / "data" / "b" / "only.png", b"junk")
    with pytest.raises(SourceError, match=r"classes without training images: b: .*b/only.png: not an image"):
        pack(tmp_path / "data", tmp_path / "run", pack={"shard_images": 1})
    assert not (tmp_path / "run" / "pack").exists()


def test_statistics_are_exact_and_a_constant_channel_can_be_divided_by() -> None:
    images = [picture(i, 4, 5) for i in range(3)]
    for image in images:
        image[..., 2] = 7
    parts = [Statistics() for _ in images]
    for part, image in zip(parts, images, strict=True):
        part.add(image)
    forward, backward = Statistics(), Statistics()
    for part, other in zip(parts, reversed(parts), strict=True):
        forward.merge(part.as_list())
        backward.merge(other.as_list())
    assert forward.mean_and_std() == backward.mean_and_std()
    assert forward.mean_and_std()[0][2] == 7
    assert forward.mean_and_std()[1][2] == 1


def test_real_cifar10_parquet(tmp_path: Path, sep_data: Path) -> None:
    limits = {"max_train_images": 100, "max_test_images": 100, "shard_images": 50}
    manifest = pack(sep_data / "cifar10", tmp_path, pack=limits)
    assert (manifest.counts["train"], manifest.counts["test"], manifest.counts["quarantined"]) == (100, 100, 0)
    assert manifest.counts["classes"][0] == "airplane"
    rows = read_table(Folder.open(str(tmp_path)).child("pack"), "samples.parquet").to_pylist()
    assert all(row["source"].startswith(row["class_name"] + "/") for row in rows)
    assert set(Counter((row["split"], row["label"]) for row in rows).values()) == {10}


def test_real_class_folders_with_grey_images(tmp_path: Path, sep_data: Path) -> None:
    limits = {"max_train_images": 100, "max_test_images": 40}
    manifest = pack(sep_data / "tiny-imagenet-20", tmp_path, pack=limits)
    assert (manifest.counts["train"], manifest.counts["test"], manifest.counts["quarantined"]) == (100, 40, 0)
    assert len(manifest.counts["classes"]) == 20
    assert (manifest.counts["height"], manifest.counts["width"]) == (64, 64)


def test_picked_classes_of_real_folders(tmp_path: Path, sep_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    limits: dict[str, Any] = {"max_train_images": 30, "max_test_images": 15}
    with pytest.raises(SourceError, match=r"pack\.classes: 'n99' is no class"):
        pack(sep_data / "tiny-imagenet-20", tmp_path, pack={**limits, "classes": ("n01443537", "n99")})
    caplog.clear()
    with caplog.at_level(logging.INFO, "pipeline"):  # the corrected command starts afresh
        manifest = pack(sep_data / "tiny-imagenet-20", tmp_path, pack={**limits, "classes": ("19", "n01443537", "2")})
    assert caplog.text.count("test images from val/") == 1
    names = sorted(path.name for path in (sep_data / "tiny-imagenet-20" / "train").iterdir())
    assert manifest.counts["classes"] == [names[0], names[2], names[19]]
    rows = read_table(Folder.open(str(tmp_path)).child("pack"), "samples.parquet").to_pylist()
    assert Counter((row["split"], row["label"]) for row in rows) == {(s, k): n for s, n in (("train", 10), ("test", 5)) for k in range(3)}
    assert all(row["source"].split("/")[1] == row["class_name"] == manifest.counts["classes"][row["label"]] for row in rows)


def test_picked_classes_of_real_parquet(tmp_path: Path, sep_data: Path) -> None:
    settings = {"max_train_images": 20, "max_test_images": 10, "classes": ("truck", "cat")}
    manifest = pack(sep_data / "cifar10", tmp_path, pack=settings)
    assert manifest.counts["classes"] == ["cat", "truck"]
    rows = read_table(Folder.open(str(tmp_path)).child("pack"), "samples.parquet").to_pylist()
    assert Counter((row["split"], row["label"]) for row in rows) == {(s, k): n for s, n in (("train", 10), ("test", 5)) for k in range(2)}
    assert all(row["source"].startswith(f"{manifest.counts['classes'][row['label']]}/") for row in rows)


def test_real_photographs_of_all_sizes(tmp_path: Path, sep_data: Path) -> None:
    photos = sorted((sep_data / "imagenet-photos").glob("*.JPEG"))
    for photo in photos:
        folder = tmp_path / "data" / photo.name.split("_")[0]
        folder.mkdir(parents=True)
        (folder / photo.name).symlink_to(photo)
    manifest = pack(tmp_path / "data", tmp_path / "run", pack={"size": 64, "shard_images": 20})
    assert (manifest.counts["train"], manifest.counts["quarantined"]) == (len(photos), 0)
    rows = read_table(Folder.open(str(tmp_path / "run")).child("pack"), "samples.parquet").to_pylist()
    assert {(row["height"], row["width"]) for row in rows} == {(64, 64)}
    assert any("potter's_wheel" in row["source"] for row in rows)
