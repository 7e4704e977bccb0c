from __future__ import annotations

import gzip
import pickle
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.sources.dataset import SourceError
from pipeline.sources.scan import scan
from tests.fixtures.pictures import class_folders, encoded, write
from tests.fixtures.source_kinds import (
    IMAGES,
    KINDS,
    add,
    config,
    contents,
    expected,
    hub,
    hub_without_metadata,
    write_cifar_binaries,
    write_cifar_pickles,
    write_folders,
    write_tar,
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_source_gives_the_same_images_under_their_classes(kind: str, tmp_path: Path) -> None:
    write_source, names = KINDS[kind]
    write_source(tmp_path)
    dataset = scan(config(tmp_path))
    assert dataset.classes == tuple(names)
    assert contents(dataset) == expected(names)
    assert len({entry.key for entry in dataset.entries}) == 9


def test_original_names_are_kept_where_they_are_unique(tmp_path: Path) -> None:
    hub_without_metadata(tmp_path / "paths")
    hub(tmp_path / "none")
    assert {e.source for e in scan(config(tmp_path / "paths")).split("test")} == {"ant/0.png", "bee/1.png", "cat/2.png"}
    assert {e.source for e in scan(config(tmp_path / "none")).split("test")} == {
        f"data/validation-00000-of-00001.parquet#{row}" for row in range(3)
    }


def test_keys_do_not_depend_on_other_images(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 3, "b": 3})
    before = {entry.source: entry.key for entry in scan(config(tmp_path)).entries}
    class_folders(tmp_path, {"a": 9, "b": 5, "c": 2})
    after = {entry.source: entry.key for entry in scan(config(tmp_path)).entries}
    assert before.items() <= after.items()


def test_samples_are_mixed_by_key_and_within_files_where_those_are_read_whole(tmp_path: Path) -> None:
    class_folders(tmp_path / "folders", {"a": 20, "b": 20})
    mixed = scan(config(tmp_path / "folders")).split("train")
    assert [e.key for e in mixed] == sorted(e.key for e in mixed)
    assert 3 < sum(e.label for e in mixed[:20]) < 17
    hub(tmp_path / "hub")
    rows = scan(config(tmp_path / "hub")).split("train")
    assert [(e.file, e.key) for e in rows] == sorted((e.file, e.key) for e in rows)


def test_limits_take_evenly_from_the_classes_and_fill_up_from_the_larger_ones(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 20, "b": 20, "c": 2}, "train/")
    class_folders(tmp_path, {"a": 5, "b": 5, "c": 5}, "test/")
    dataset = scan(config(tmp_path, max_train_images=12, max_test_images=3))
    assert Counter(e.label for e in dataset.split("train")) == {0: 5, 1: 5, 2: 2}
    assert Counter(e.label for e in dataset.split("test")) == {0: 1, 1: 1, 2: 1}


def test_a_share_of_each_class_is_held_out_and_growing_data_hardly_moves_it(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 20, "b": 10, "c": 2})
    dataset = scan(config(tmp_path, test_fraction=0.2))
    assert Counter(e.label for e in dataset.split("test")) == {0: 4, 1: 2, 2: 1}
    assert Counter(e.label for e in dataset.split("train")) == {0: 16, 1: 8, 2: 1}
    assert scan(config(tmp_path, test_fraction=0.2)).entries == dataset.entries


class Evil(str):
    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (Path(self),)


def test_a_pickle_cannot_run_anything(tmp_path: Path) -> None:
    write_cifar_pickles(tmp_path, True)
    write(tmp_path / "train", pickle.dumps({b"data": Evil(tmp_path / "was-run")}))
    with pytest.raises(SourceError, match=r"touch is not needed for images and was not loaded"):
        scan(config(tmp_path))
    assert not (tmp_path / "was-run").exists()


def cut_tar(root: Path) -> None:
    """Cut a tar between two members, which tarfile itself takes for a shorter archive."""
    write_tar(root / "train-0.tar", range(6))
    with tarfile.open(root / "train-0.tar") as tar:
        third = tar.getmembers()[6].offset
    (root / "train-0.tar").write_bytes((root / "train-0.tar").read_bytes()[:third])


def tar_without_label(root: Path) -> None:
    with tarfile.open(root / "train-0.tar", "w") as tar:
        add(tar, "0001.png", encoded(IMAGES[0]))


def tar_with_labels(*labels: bytes) -> Callable[[Path], None]:
    def write_it(root: Path) -> None:
        with tarfile.open(root / "train-0.tar", "w") as tar:
            for number, label in enumerate(labels):
                add(tar, f"{number}.png", encoded(IMAGES[number]))
                add(tar, f"{number}.cls", label)

    return write_it


def a_file(root: Path) -> None:
    root.rmdir()
    root.touch()


def parquet_with_labels(labels: list[int | None]) -> Callable[[Path], None]:
    def write_it(root: Path) -> None:
        struct = [{"bytes": encoded(IMAGES[0]), "path": None} for _ in labels]
        pq.write_table(pa.table({"image": struct, "label": pa.array(labels, pa.int64())}), root / "train-0.parquet")

    return write_it


def folders(**splits: dict[str, int]) -> Callable[[Path], None]:
    def write_it(root: Path) -> None:
        for split, classes in splits.items():
            class_folders(root, classes, "" if split == "top" else f"{split}/")
            for name, images in classes.items():
                if not images:
                    (root / ("" if split == "top" else split) / name).mkdir(parents=True)

    return write_it


def missing_batch(root: Path) -> None:
    write_cifar_binaries(root, False)
    (root / "data_batch_3.bin").unlink()


ERRORS: dict[str, tuple[Callable[[Path], None], dict[str, Any], str]] = {
    "no such folder": (lambda root: root.rmdir(), {}, "expected a folder, found nothing"),
    "a file": (a_file, {}, "expected a folder, found a file"),
    "tar labels in words": (
        tar_with_labels(b"ant", b"bee"),
        {},
        "found 'ant': number the classes from 0, and list their names in classes.txt",
    ),
    "tar labels from 1": (tar_with_labels(b"1", b"2"), {}, "the largest is 2, but missing are 0: number the classes from 0, without gaps"),
    "nothing in it": (lambda root: None, {}, "is empty"),
    "no layout": (lambda root: write(root / "1.jpg", b""), {}, "no layout that is understood: expected folders of class folders"),
    "images without classes": (lambda root: write(root / "train" / "1.jpg", b""), {}, "no layout that is understood"),
    "empty class": (folders(top={"a": 2, "b": 0, "c": 1}), {}, "classes without training images: b:"),
    "one class": (folders(top={"a": 2}), {}, "at least 2 classes"),
    "classes only in test": (folders(train={"a": 1, "b": 1}, test={"a": 1, "b": 1, "x": 1}), {}, "that training lacks: x$"),
    "classes not in test": (folders(train={"a": 1, "b": 1, "c": 1}, val={"a": 1, "b": 1}), {}, "test split lacks .*: c$"),
    "both kinds of test split": (
        folders(train={"a": 1, "b": 1}, test={"a": 1, "b": 1}),
        {"test_fraction": 0.1},
        "test-fraction = 0.1 was given, but",
    ),
    "an unknown class": (
        write_folders,
        {"classes": ("ant", "cow")},
        r"pack\.classes: 'cow' is no class; expected a name \(ant, bee, cat\)",
    ),
    "an index beyond": (hub, {"classes": ("0", "3")}, "'3' is no class; .* an index from 0 to 2"),
    "a class twice": (write_folders, {"classes": ("ant", "0")}, "'ant' is named twice"),
    "one class picked": (write_folders, {"classes": ("ant",)}, "at least 2 classes are needed, found 1: ant$"),
    "classes of nothing": (lambda root: None, {"classes": ("a", "b")}, "is empty"),
    "an empty class picked": (folders(train={"a": 1, "b": 0, "c": 1}), {"classes": ("a", "b")}, "without training images: b:"),
    "a limit below the classes": (folders(top={"a": 2, "b": 2}), {"max_train_images": 1}, "max-train-images = 1 leaves classes"),
    "nothing left to train on": (folders(top={"a": 1, "b": 4}), {"test_fraction": 0.5}, "that training lacks: a$"),
    "negative labels": (parquet_with_labels([0, 1, -1]), {}, "0..K-1, found -1"),
    "gaps in labels": (parquet_with_labels([0, 1, 4]), {}, "missing are 2, 3: number"),
    "one label far off": (parquet_with_labels([0, 1, 10**9]), {}, "missing are 2, 3, .* more"),
    "no label": (parquet_with_labels([0, 1, None]), {}, "1 rows have no label"),
    "no parquet": (
        lambda root: write(root / "train-0.parquet", b"PAR1 nonsense"),
        {},
        "expected a Parquet file, found one that is damaged or cut short",
    ),
    "no image column": (lambda root: pq.write_table(pa.table({"label": [1]}), root / "train-0.parquet"), {}, "found label: int64"),
    "no training files": (lambda root: write_tar(root / "test-0.tar", range(3)), {}, "none named train-"),
    "cut tar": (cut_tar, {}, "end-of-archive block is missing"),
    "image without label": (tar_without_label, {}, "not so 0001"),
    "a missing batch": (missing_batch, {}, "lacks data_batch_3.bin"),
}


CONTENTS = {
    "gzip": (gzip.compress(b"x" * 1000), "gzip data: unpack it with gunzip"),
    "zip": (b"PK\x03\x04" + bytes(600), "a zip archive: unpack it"),
    "Zstandard": (b"\x28\xb5\x2f\xfd" + bytes(600), "Zstandard data"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "a Git LFS pointer .* `git lfs pull`"),
    "a web page": (b"<!DOCTYPE html><html>not found</html>", "a web page"),
    "nothing": (b"", "nothing: fetch it again"),
}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize(("suffix", "kind"), [("tar", "an uncompressed tar"), ("parquet", "a Parquet file")])
def test_a_shard_that_is_something_else_is_named_with_what_it_is(name: str, suffix: str, kind: str, tmp_path: Path) -> None:
    content, what = CONTENTS[name]
    write(tmp_path / f"train-0.{suffix}", content)
    with pytest.raises(SourceError, match=rf"train-0\.{suffix}: expected {kind}, found {what}"):
        scan(config(tmp_path))


@pytest.mark.parametrize("name", ERRORS)
def test_what_cannot_be_packed_is_named(name: str, tmp_path: Path) -> None:
    write_source, pack, message = ERRORS[name]
    write_source(tmp_path)
    with pytest.raises(SourceError, match=message):
        scan(config(tmp_path, **pack))


def test_measuring_needs_test_images(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 2, "b": 2})
    with pytest.raises(SourceError, match=r"--pack.test-fraction 0.1, or .* --stages pack surrogate protect"):
        scan(replace(config(tmp_path), stages=("pack", "victim")))
