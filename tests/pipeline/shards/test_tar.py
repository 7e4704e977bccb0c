"""Malicious tars: false claims are refused before any memory is taken, and no name in them becomes a path."""

from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.operations.shard_inspection import read_members
from pipeline.shards import tar
from pipeline.shards.shard import CorruptShard, decode_shard
from pipeline.shards.tar import content, files, open_tar
from pipeline.sources.dataset import SourceError
from pipeline.sources.scan import scan
from tests.fixtures.source_kinds import add, config


def tar_of(*members: tuple[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in members:
            add(tar, name, data)
    return stream.getvalue()


def header(name: str, size: int, kind: bytes, **pax: str) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.pax_headers = size, kind, pax
    return info.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT)


def everything(data: bytes) -> list[bytes]:
    with open_tar(io.BytesIO(data)) as tar:
        return [content(tar, member) for member in files(tar)]


SAMPLE = (("a.cls", b"1"), ("a.json", b"{}"), ("a.png", b"png"))
MIB = 2**20
SPARSE = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(256 * MIB)}
BOMBS = {
    "a sparse file of 256 MiB without a byte": header("a.png", 0, tarfile.REGTYPE, **SPARSE),
    "a file larger than any image": header("a.png", 4096 * MIB, tarfile.REGTYPE),
    "a long name of 32 MiB": header("x", 32 * MIB, tarfile.GNUTYPE_LONGNAME),
    "attributes of 32 MiB": header("x", 32 * MIB, tarfile.XHDTYPE),
}


@contextmanager
def little_memory() -> Iterator[None]:
    """Check that the block takes no more than a few MiB."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 5 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("read", [everything, decode_shard])
@pytest.mark.parametrize("bomb", BOMBS)
def test_what_a_member_claims_is_refused_before_it_is_read(bomb: str, read: Callable[[bytes], Any]) -> None:
    data = BOMBS[bomb] + bytes(33 * MIB)
    with little_memory(), pytest.raises((tarfile.TarError, CorruptShard)):
        read(data)


@pytest.mark.parametrize("bomb", BOMBS)
def test_an_audit_takes_such_a_member_for_missing(bomb: str) -> None:
    data = BOMBS[bomb] + bytes(33 * MIB)
    with little_memory():
        contents, _ = read_members(data)
    assert not any(value for members in contents.values() for value in members.values())


def test_a_member_may_be_as_large_as_an_image_and_no_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "MOST_BYTES", 1000)
    assert decode_shard(tar_of(*SAMPLE[:2], ("a.png", bytes(1000))))[0].image == bytes(1000)
    with pytest.raises(CorruptShard, match="claims 1001 bytes"):
        decode_shard(tar_of(*SAMPLE[:2], ("a.png", bytes(1001))))


def test_a_compressed_tar_is_not_unpacked() -> None:
    with pytest.raises(CorruptShard, match="damaged"):
        decode_shard(gzip.compress(tar_of(*SAMPLE)))


@pytest.mark.parametrize("twice", [(*SAMPLE, SAMPLE[2]), (*SAMPLE, ("b.cls", b"1"), ("b.json", b""), ("b.png", b""), *SAMPLE)])
def test_what_is_there_twice_is_refused(twice: tuple[tuple[str, bytes], ...]) -> None:
    with pytest.raises(CorruptShard, match=r"twice|duplicate"):
        decode_shard(tar_of(*twice))
    assert read_members(tar_of(*twice))[1] == ["a"]


def test_names_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = tar_of(*((f"../../{tmp_path.name}-out/{name}", content) for name, content in SAMPLE))
    data = header("/etc/passwd", 0, tarfile.SYMTYPE) + data
    assert [sample.key for sample in decode_shard(data)] == [f"../../{tmp_path.name}-out/a"]
    assert list(tmp_path.iterdir()) == []
    assert not (tmp_path.parent / f"{tmp_path.name}-out").exists()


def label(value: bytes) -> Callable[[], bytes]:
    return lambda: tar_of(("a.cls", value), ("a.png", b""))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (label(b" " * 1000 + b"1"), "expected the number of a class, found 1001 bytes"),
        (lambda: tar_of(("a.cls", b"0"), ("a.png", b""), ("a.cls", b"1")), "'a' has two labels"),
        (lambda: tar_of(("a.cls", b"0"), ("a.png", b""), ("a.jpg", b"")), "'a' has two images"),
        *((lambda bomb=bomb: bomb + bytes(100_000), "damaged") for bomb in BOMBS.values()),
    ],
)
def test_a_tar_of_images_that_was_made_to_harm_is_refused_by_name(tmp_path: Path, data: Callable[[], bytes], said: str) -> None:
    (tmp_path / "train-0.tar").write_bytes(data())
    with pytest.raises(SourceError, match=rf"train-0\.tar.*{said}"):
        scan(config(tmp_path))
