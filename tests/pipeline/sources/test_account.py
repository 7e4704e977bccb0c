"""Whatever lies in a source is packed, refused with a reason, or named: nothing is left out in silence."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from pipeline.sources.dataset import SourceError
from pipeline.sources.scan import scan
from tests import ROOT
from tests.fixtures.pictures import class_folders, encoded, write
from tests.fixtures.source_kinds import IMAGES, add, config, contents, write_cifar_binaries, write_parquet, write_tar

Writer = Callable[[Path], None]
PNG = encoded(IMAGES[0])


def two(root: Path, prefix: str = "") -> None:
    """Two classes, `a` and `b`, with two images each."""
    class_folders(root, {"a": 2, "b": 2}, prefix)


def shard(root: Path, name: str, rows: range = range(3)) -> None:
    write_parquet(root, name, rows, path=lambda i: None)


def tar_of(root: Path, members: dict[str, bytes], links: dict[str, tuple[bytes, str]] | None = None) -> None:
    """One tar, with links after its files: name, kind and target."""
    with tarfile.open(root / "train-0.tar", "w") as tar:
        for name, data in members.items():
            add(tar, name, data)
        for name, (kind, target) in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)


def beside_tars(*names: str) -> Writer:
    def write_it(root: Path) -> None:
        for name in ("train-0.tar", *names):
            write_tar(root / name, range(6))

    return write_it


def beside_folders(*names: str, content: bytes = PNG) -> Writer:
    def write_it(root: Path) -> None:
        two(root, "train/")
        for name in names:
            write(root / name, content)

    return write_it


def beside_parquet(*names: str, content: bytes = b"") -> Writer:
    def write_it(root: Path) -> None:
        shard(root, "train-00000-of-00001.parquet")
        for name in names:
            write(root / name, content)

    return write_it


def linked(name: str, target: str, prefix: str = "") -> Writer:
    def write_it(root: Path) -> None:
        two(root, prefix)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)

    return write_it


def concatenated(root: Path) -> None:
    write_tar(root / "train-0.tar", range(3))
    write_tar(root / "more.bin", range(3, 6))
    (root / "train-0.tar").write_bytes((root / "train-0.tar").read_bytes() + (root / "more.bin").read_bytes())
    (root / "more.bin").unlink()


def both(*writers: Writer) -> Writer:
    def write_it(root: Path) -> None:
        for writer in writers:
            writer(root)

    return write_it


def shards(*names: str) -> Writer:
    return both(*(partial(lambda root, place: shard((root / place).parent, (root / place).name), place=name) for name in names))


def links_to_classes(root: Path) -> None:
    two(root / "away")
    write(root / "own" / "c" / "1.png", PNG)
    for name in "ab":
        (root / "own" / name).symlink_to(root / "away" / name)


def cifar_with(name: str, folder: str = "") -> Writer:
    return both(lambda root: write_cifar_binaries(root / folder, False), lambda root: write(root / name, b""))


def two_cifars(root: Path) -> None:
    write_cifar_binaries(root / "cifar-10-batches-bin", False)
    write_cifar_binaries(root / "cifar-100-binary", True)


SAMPLE = {"a.cls": b"0", "a.png": PNG, "b.cls": b"1", "b.png": PNG}
WHOLE: dict[str, tuple[Writer, dict[str, int]]] = {
    "a dot in a key": (lambda root: tar_of(root, {**SAMPLE, "photo.v2.cls": b"0", "photo.v2.png": PNG}), {"train": 3}),
    "hard links in a tar": (
        lambda root: tar_of(root, SAMPLE, {"c.png": (tarfile.LNKTYPE, "a.png"), "c.cls": (tarfile.LNKTYPE, "b.cls")}),
        {"train": 3},
    ),
    "links in a tar, one to another": (
        lambda root: tar_of(
            root,
            {**SAMPLE, "x/c.cls": b"1", "x/d.cls": b"1"},
            {"x/c.png": (tarfile.SYMTYPE, "../a.png"), "x/d.png": (tarfile.SYMTYPE, "c.png")},
        ),
        {"train": 4},
    ),
    "names in a tar that lead to and fro": (
        lambda root: tar_of(
            root, {**SAMPLE, "./c.cls": b"0", "c.png": PNG, "a/../d.cls": b"1", "d.png": PNG, "../e.cls": b"1", "../e.png": PNG}
        ),
        {"train": 5},
    ),
    "a name in a tar that is no UTF-8": (
        lambda root: tar_of(root, {**SAMPLE, "\udcff.cls": b"0", "\udcff.png": PNG}),
        {"train": 3},
    ),
    "other spellings of shards": (beside_tars("train_1.TAR", "training-1.tar", "valid-0.tar"), {"train": 18, "test": 6}),
    "shards in folders of splits": (
        both(lambda r: write_tar(r / "train/0000.tar", range(6)), lambda r: write_tar(r / "test/0000.tar", range(6))),
        {"train": 6, "test": 6},
    ),
    "converted parquet": (
        shards("default/train/0000.parquet", "default/test/0000.parquet"),
        {"train": 3, "test": 3},
    ),
    "a set whose files have a hash each": (shards("train-00000-of-00002-aa.parquet", "train-00001-of-00002-bb.parquet"), {"train": 6}),
    "valid/": (both(lambda r: two(r, "train/"), lambda r: two(r, "valid/")), {"train": 4, "test": 4}),
    "Test/": (both(lambda r: two(r, "train/"), lambda r: two(r, "Test/")), {"train": 4, "test": 4}),
    "Training/ and Validation/": (both(lambda r: two(r, "Training/"), lambda r: two(r, "Validation/")), {"train": 4, "test": 4}),
    "classes that are links": (links_to_classes, {"train": 5}),
}


@pytest.mark.parametrize("name", WHOLE)
def test_everything_is_packed(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_source, expected = WHOLE[name]
    write_source(tmp_path)
    dataset = scan(config(tmp_path / "own" if (tmp_path / "own").exists() else tmp_path))
    assert Counter(entry.split for entry in dataset.entries) == expected
    assert sum(map(len, contents(dataset).values())) == sum(expected.values())
    assert not [line for line in warnings(caplog) if "seg.json" not in line]


STOPPED: dict[str, tuple[Writer, str]] = {
    "a shard in another folder": (beside_tars("data/train-1.tar"), "data/train-1.tar"),
    "a shard that is compressed": (both(beside_tars(), beside_parquet("train-1.tar.gz")), "two kinds|train-1.tar.gz"),
    "a shard without a split": (beside_tars("shard-1.tar"), "shard-1.tar"),
    "half a download of a tar": (both(beside_tars(), lambda r: write(r / "train-1.tar.part", b"")), "train-1.tar.part"),
    "tars and parquet files": (both(beside_tars(), beside_parquet()), "train-00000-of-00001.parquet|train-0.tar"),
    "a tar after another in one file": (concatenated, "data follows its end"),
    "a link in a tar to nothing": (lambda root: tar_of(root, SAMPLE, {"c.png": (tarfile.SYMTYPE, "../z.png")}), "c.png .* link"),
    "links in a tar in a circle": (
        lambda root: tar_of(root, SAMPLE, {"c.png": (tarfile.SYMTYPE, "d.png"), "d.png": (tarfile.SYMTYPE, "c.png")}),
        r"[cd].png .* link",
    ),
    "1 of 2 files": (shards("train-00000-of-00002.parquet"), "train-00001-of-00002.parquet"),
    "2 of 3 files": (
        shards("train-00000-of-00003.parquet", "train-00002-of-00003.parquet"),
        "missing: train-00001-of-00003.parquet",
    ),
    "2 of 3 tars": (beside_tars("train-00001-of-00003.tar", "train-00002-of-00003.tar"), "missing: train-00000-of-00003.tar"),
    "1 of 2 test files": (
        both(beside_parquet(), shards("test-00001-of-00002.parquet")),
        "missing: test-00000-of-00002.parquet",
    ),
    "files of two sets": (
        shards("train-00000-of-00001.parquet", "train-00000-of-00002.parquet"),
        "missing: train-00001-of-00002.parquet",
    ),
    "a file of another revision": (
        shards("train-00000-of-00002-aa.parquet", "train-00001-of-00002-bb.parquet", "train-00000-of-00002-cc.parquet"),
        "two sets .*-aa.parquet, train-00000-of-00002-cc.parquet",
    ),
    "a number in two spellings": (both(beside_parquet(), shards("train-0-of-1.parquet")), "two sets"),
    "a whole file beside a set": (both(beside_parquet(), shards("train.parquet")), "two sets .*of-00001.parquet, train.parquet"),
    "a tar beside a set": (beside_tars("train-00000-of-00001.tar"), "two sets .* train-0.tar, train-00000-of-00001.tar"),
    "a second download of a tar": (beside_tars("train-0 (1).tar"), r"train-0 \(1\)\.tar: looks like a second copy of train-0\.tar"),
    "a copy of a tar": (beside_tars("train-0 - Copy.tar"), "second copy of train-0.tar"),
    "a numbered copy of a tar": (beside_tars("train-0 copy 2.tar"), "second copy of train-0.tar"),
    "a tar kept beside another": (beside_tars("train-0 2.tar"), "second copy of train-0.tar"),
    "a second download of a parquet file": (
        both(beside_parquet(), shards("train-00000-of-00001(1).parquet")),
        "second copy of train-00000-of-00001.parquet",
    ),
    "a copy of a class": (lambda root: class_folders(root, {"a": 2, "b": 2, "a (2)": 2}), r"a \(2\): looks like a second copy of a,"),
    "half a download": (beside_parquet("train-00001-of-00002.parquet.incomplete"), "parquet.incomplete"),
    "a parquet file that is a link to nothing": (
        both(beside_parquet(), lambda root: (root / "train-1.parquet").symlink_to("/nowhere/at/all")),
        "train-1.parquet.* link to nothing",
    ),
    "parquet inside class folders": (both(two, shards("train.parquet")), "two kinds"),
    "parquet inside a class": (both(two, shards("a/train.parquet")), "two kinds"),
    "tars beside class folders": (beside_folders("train-0.tar", content=b""), "two kinds|train-0.tar"),
    "the archive of a split that is not unpacked": (beside_folders("test.tar.gz", content=b""), "test.tar.gz"),
    "a split of another name": (both(lambda r: two(r, "train/"), lambda r: two(r, "holdout/")), "holdout/ .* train"),
    "a second train folder": (both(lambda r: two(r, "train/"), lambda r: two(r, "train2/")), "train2/ .* train"),
    "two spellings of a split": (both(lambda r: two(r, "train/"), lambda r: two(r, "Train/")), "Train.*train"),
    "a class that is a link to nothing": (linked("c", "/nowhere/at/all"), "c: .*link to nothing"),
    "a class that is another one": (linked("c", "a"), "c: .* again"),
    "a class of the training split that is a link to nothing": (linked("train/c", "/nowhere", "train/"), "train/c: .*link to nothing"),
    "a further CIFAR batch": (cifar_with("data_batch_6.bin"), "data_batch_6.bin"),
    "two CIFAR folders": (two_cifars, "cifar-10-batches-bin.*cifar-100-binary"),
}


@pytest.mark.parametrize("name", STOPPED)
def test_what_looks_like_data_and_cannot_be_used_stops_the_start(name: str, tmp_path: Path) -> None:
    write_source, says = STOPPED[name]
    write_source(tmp_path)
    with pytest.raises(SourceError, match=says) as raised:
        scan(config(tmp_path))
    assert "\n" not in str(raised.value)


NAMED: dict[str, tuple[Writer, str]] = {
    "an image outside the classes": (beside_folders("train/loose.png", "1.jpg"), "2 .* 1.jpg, train/loose.png"),
    "notes": (beside_folders("README.md", "train/labels.csv", content=b"x"), "2 .* README.md, train/labels.csv"),
    "images in a folder beside the splits": (beside_folders("unlabelled/1.png"), "unlabelled/1.png"),
    "hidden files": (beside_folders("train/a/._0.png", ".git/config"), r"2 left out \(hidden\): \.git, train/a/\._0\.png"),
    "a second split for testing": (
        both(beside_folders("test/a/1.png", "test/b/1.png"), lambda root: two(root, "val/")),
        "4 .* val/a/0.png",
    ),
    "files of a second split for testing": (
        both(beside_parquet(), shards("test.parquet", "validation.parquet")),
        "validation.parquet",
    ),
    "a link to nothing outside the classes": (linked("train/x.png", "/nowhere", "train/"), "train/x.png"),
    "members of no sample": (lambda root: tar_of(root, {**SAMPLE, "a.json": b"{}", "b.json": b"{}", "a.seg.png": PNG}), r"\*\.json \(2\)"),
    "what a Mac adds to a tar": (lambda root: tar_of(root, {**SAMPLE, "._a.png": b"", "._a.cls": b""}), r"hidden \(2\)"),
    "a tar of nothing": (both(beside_tars(), lambda root: tarfile.open(root / "train-1.tar", "w").close()), "train-1.tar"),
    "a checksum beside a tar": (both(beside_tars(), lambda root: write(root / "train-0.tar.md5", b"x")), "train-0.tar.md5"),
    "a number left out": (beside_tars("train-2.tar"), "train-1.tar"),
    "the archive of a CIFAR folder": (cifar_with("cifar-10-binary.tar.gz", "cifar-10-batches-bin"), "cifar-10-binary.tar.gz"),
    "the archive of a split": (beside_folders("train.tar.gz", content=b"\x1f\x8b"), "train.tar.gz"),
    "class names beside folders": (beside_folders("classes.txt", content=b"x"), "classes.txt"),
}


@pytest.mark.parametrize("name", NAMED)
def test_what_is_left_out_is_named(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_source, says = NAMED[name]
    write_source(tmp_path)
    scan(config(tmp_path))
    assert any(re.search(says, line) for line in warnings(caplog)), warnings(caplog)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def fifo(root: Path) -> None:
    two(root)
    os.mkfifo(root / "a" / "pipe.png")


def not_utf8(root: Path) -> None:
    two(root)
    with open(os.fsencode(root / "a") + b"/\xff.png", "wb") as stream:
        stream.write(PNG)


REFUSED: dict[str, tuple[Writer, str, str]] = {
    "a link to nothing": (linked("a/link.png", "/nowhere/at/all"), "a/link.png", "a link to nothing"),
    "a link to itself": (linked("a/link.png", "link.png"), "a/link.png", "a link to nothing"),
    "a folder within itself": (linked("a/loop", ".."), "a/loop", "again"),
    "a class within another": (linked("a/b", "../b"), "a/b", "again"),
    "a pipe": (fifo, "a/pipe.png", "not a file"),
    "a name that is no UTF-8": (not_utf8, r"a/\xff.png", "UTF-8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_lies_in_a_class_and_cannot_be_read_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    write_source, source, reason = REFUSED[name]
    write_source(tmp_path)
    faults = {entry.source: entry.fault for entry in scan(config(tmp_path)).entries}
    assert reason in faults.pop(source)
    assert list(faults.values()) == [""] * 4


WITHOUT_ROOTS_RIGHTS = (
    [] if os.geteuid() else ["setpriv", *(f"--{of}=-dac_override,-dac_read_search" for of in ("bounding-set", "inh-caps"))]
)
SCAN = """
import sys
from pathlib import Path
from pipeline.sources.scan import scan
from tests.fixtures.source_kinds import config
for root in sys.argv[1:]:
    try:
        print({entry.source: entry.fault for entry in scan(config(Path(root))).entries if entry.fault})
    except Exception as error:
        print(type(error).__name__, error)
"""
UNREADABLE: dict[str, tuple[Writer, str, str]] = {
    "an image": (two, "a/1.png", "{'a/1.png': 'not readable: change its permissions'}"),
    "a class": (two, "b", "SourceError .*/b: not readable"),
    "a shard": (beside_tars("train-1.tar"), "train-1.tar", "SourceError .*/train-1.tar looks like .* not readable"),
    "a file of a set": (beside_parquet(), "train-00000-of-00001.parquet", r"SourceError .*00001.parquet \(not readable"),
    "class names": (both(beside_tars(), lambda root: write(root / "classes.txt", b"a")), "classes.txt", "classes.txt: not readable"),
    "a CIFAR batch": (lambda root: write_cifar_binaries(root, False), "data_batch_3.bin", r"lacks data_batch_3.bin \(not readable"),
}


@pytest.mark.skipif(bool(WITHOUT_ROOTS_RIGHTS) and not shutil.which("setpriv"), reason="root reads everything, and there is no setpriv")
def test_what_may_not_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    for name, (write_source, closed, _) in UNREADABLE.items():
        write_source(tmp_path / name)
        (tmp_path / name / closed).chmod(0)
    command = [*WITHOUT_ROOTS_RIGHTS, sys.executable, "-c", SCAN, *(str(tmp_path / name) for name in UNREADABLE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    (tmp_path / "a class" / "b").chmod(0o700)  # so that pytest may remove it
    lines = done.stdout.splitlines()
    assert len(lines) == len(UNREADABLE), done.stderr
    for line, (_, _, says) in zip(lines, UNREADABLE.values(), strict=True):
        assert re.search(says, line), line
