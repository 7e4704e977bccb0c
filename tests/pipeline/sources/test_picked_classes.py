"""Selection of classes by --pack.classes, on every kind of source."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.schema import PackConfig, ProtectConfig, RunConfig
from pipeline.sources.dataset import SourceError
from pipeline.sources.listing import Listing
from pipeline.sources.scan import scan
from pipeline.storage.folder import Folder
from tests.fixtures.pictures import class_folders, write
from tests.fixtures.source_kinds import KINDS, config, contents, expected, write_folders


@pytest.mark.parametrize("kind", KINDS)
def test_classes_are_picked_from_every_kind_and_renumbered_and_their_images_keep_their_keys(kind: str, tmp_path: Path) -> None:
    write_source, names = KINDS[kind]
    write_source(tmp_path)
    dataset, whole = scan(config(tmp_path, classes=(names[2], "0"))), scan(config(tmp_path))
    assert dataset.classes == (names[0], names[2])
    assert contents(dataset) == {place: images for place, images in expected(names).items() if place[1] != names[1]}
    assert {e.key for e in dataset.entries} == {e.key for e in whole.entries if whole.classes[e.label] != names[1]}


def test_textures_are_picked_like_any_other_images() -> None:
    chosen = scan(RunConfig(stages=("pack",), pack=PackConfig(classes=("9", "0-degrees-fine"), max_train_images=5)))
    assert chosen.classes == ("0-degrees-fine", "144-degrees-fine")
    assert Counter(e.label for e in chosen.split("train")) == {0: 3, 1: 2}  # the limit counts images of picked classes alone
    assert Counter(e.label for e in chosen.split("test")) == {0: 100, 1: 100}
    whole = scan(RunConfig())
    same = {e.key: pixels for e, pixels in whole.reader.read(whole.split("train")[:300]) if isinstance(pixels, np.ndarray)}
    read = [(pixels, same[e.key]) for e, pixels in chosen.reader.read(chosen.split("train")) if e.key in same]
    assert read
    assert all(np.array_equal(a, b) for a, b in read)


def test_only_the_folders_of_the_classes_picked_are_looked_into(tmp_path: Path) -> None:
    write_folders(tmp_path)
    write(tmp_path / "notes" / "deep" / "er.txt", b"")
    listing = Listing.of(Folder.open(str(tmp_path)), ["bee"])
    assert sorted(listing.files) == [
        "notes/deep/er.txt",
        "test/bee/1.png",
        "train/README.txt",
        "train/bee/1.png",
        "train/bee/deep/er/4.png",
    ]
    assert {"train/ant", "test/cat"} <= set(listing.directories)
    class_folders(tmp_path / "flat", {"train": 2, "test": 2, "x": 2})  # classes with the names of splits
    assert len(Listing.of(Folder.open(str(tmp_path / "flat")), ["x"]).files) == 6
    assert scan(config(tmp_path / "flat", classes=("test", "x"))).classes == ("test", "x")


def test_what_is_wrong_with_classes_not_picked_does_no_harm(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 2, "b": 2, "c": 2}, "train/")
    class_folders(tmp_path, {"a": 1, "b": 1, "x": 1}, "val/")
    dataset = scan(config(tmp_path, classes=("a", "b")))
    assert Counter((e.split, e.label) for e in dataset.entries) == {("train", 0): 2, ("train", 1): 2, ("test", 0): 1, ("test", 1): 1}


@pytest.mark.parametrize(
    ("protect", "message"),
    [
        (ProtectConfig(classes=("a", "q")), r"protect\.classes: 'q' is no class; expected a name \(a, b, c\)"),
        (ProtectConfig(classes=("0", "3")), r"protect\.classes: '3' is no class; .* an index from 0 to 2"),
        (ProtectConfig(classes=("b",)), r"protect\.classes: .* at least 2; got 1"),
    ],
)
def test_classes_that_cannot_be_protected_are_refused_before_anything_is_done(tmp_path: Path, protect: ProtectConfig, message: str) -> None:
    class_folders(tmp_path, {"a": 2, "b": 2, "c": 2, "unused": 2})
    asked = replace(config(tmp_path, classes=("a", "b", "c")), stages=("pack", "protect"), protect=protect)
    with pytest.raises(SourceError, match=message):
        scan(asked)
    assert len(scan(replace(asked, stages=("pack",))).entries) == 6


def test_one_class_alone_can_be_protected_where_no_other_is_needed(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 2, "b": 2})
    protect = ProtectConfig(classes=("b",), targets="untargeted")
    assert len(scan(replace(config(tmp_path), stages=("pack", "protect"), protect=protect)).entries) == 4
