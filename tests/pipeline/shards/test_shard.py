from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import webdataset as wds

from pipeline.shards.pixels import Pixels, decode, encode_png, pixels_sha256
from pipeline.shards.shard import CorruptShard, Sample, decode_shard, encode_shard, read_shard, write_shard
from pipeline.shards.tables import read_table, rows_to_table, write_table
from pipeline.storage.folder import Folder
from pipeline.storage.records import sha256
from pipeline.storage.stage import Shard

NAME = "train-000000.tar"


def picture(seed: int, height: int = 9, width: int = 7) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def samples() -> list[Sample]:
    return [Sample(f"{i:06d}", encode_png(picture(i)), i % 3, json.dumps({"source": f"cat/{i}.png"}).encode()) for i in range(10)]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder.open(str(tmp_path / "pack"))


def test_png_keeps_every_level() -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    assert np.array_equal(decode(encode_png(pixels)), pixels)
    assert encode_png(pixels) == encode_png(pixels.copy())


def test_a_damaged_or_foreign_picture_is_no_png() -> None:
    png = encode_png(picture(0))
    for broken in (png[:-40], b"", b"GIF89a" + png):
        with pytest.raises((OSError, SyntaxError)):
            decode(broken)


def test_pixel_hash_is_of_the_levels_and_their_order() -> None:
    pixels = picture(0)
    assert pixels_sha256(pixels) == sha256(pixels.tobytes())
    assert pixels_sha256(pixels.transpose(1, 0, 2).copy().transpose(1, 0, 2)) == pixels_sha256(pixels)  # whatever the memory order
    other = pixels.copy()
    other[0, 0, 0] ^= 1
    assert pixels_sha256(other) != pixels_sha256(pixels)


def test_shards_round_trip_and_have_the_same_bytes_every_time(folder: Folder, samples: list[Sample]) -> None:
    shard, stored = write_shard(folder, NAME, samples)
    assert shard == Shard(NAME, sha256(folder.read(NAME)), 10)
    assert read_shard(folder, shard) == stored == samples
    assert encode_shard(samples) == folder.read(NAME)
    assert encode_shard(samples[::-1]) != folder.read(NAME)
    with tarfile.open(fileobj=io.BytesIO(folder.read(NAME))) as tar:
        members = tar.getmembers()
    assert [m.name for m in members[:3]] == ["000000.cls", "000000.json", "000000.png"]
    assert {(m.mtime, m.uname, m.gname, m.uid) for m in members} == {(0, "", "", 0)}


def test_shards_are_what_webdataset_reads(folder: Folder, samples: list[Sample]) -> None:
    write_shard(folder, NAME, samples)
    found = list(wds.WebDataset(folder.file(NAME), shardshuffle=False))
    assert [(s["__key__"], s["cls"], s["png"]) for s in found] == [(s.key, b"%d" % s.label, s.image) for s in samples]


def test_every_altered_byte_is_refused_by_name(folder: Folder, samples: list[Sample]) -> None:
    shard, _ = write_shard(folder, NAME, samples)
    whole = folder.read(NAME)
    for offset in (0, 300, 512, 1200, len(whole) // 2, len(whole) - 1):
        folder.write(NAME, whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
        with pytest.raises(CorruptShard, match=f"{NAME} was altered or truncated"):
            read_shard(folder, shard)


def test_a_cut_tar_is_refused_by_name_even_where_it_reads_as_fewer_samples(folder: Folder, samples: list[Sample]) -> None:
    shard, _ = write_shard(folder, NAME, samples)
    whole = folder.read(NAME)
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        boundary = tar.getmembers()[15].offset
    assert len(decode_shard(whole[:boundary])) == 5  # no error from the tar itself
    for cut in (boundary, boundary + 700, 0):
        folder.write(NAME, whole[:cut])
        with pytest.raises(CorruptShard, match=NAME):
            read_shard(folder, shard)


def test_another_count_than_recorded_is_refused_by_name(folder: Folder, samples: list[Sample]) -> None:
    shard, _ = write_shard(folder, NAME, samples)
    with pytest.raises(CorruptShard, match=f"{NAME}: expected 9 samples, found 10"):
        read_shard(folder, Shard(NAME, shard.sha256, 9))


def test_a_missing_shard_is_refused_by_name(folder: Folder) -> None:
    with pytest.raises(CorruptShard, match=f"{NAME} is missing"):
        read_shard(folder, Shard(NAME, "0", 1))


@pytest.mark.parametrize("broken", [{"png": b"x", "json": b"{}"}, {"png": b"x", "json": b"{}", "cls": b"cat"}])
def test_a_sample_without_all_its_members_is_refused_by_key(broken: dict[str, bytes]) -> None:
    stream = io.BytesIO()
    with wds.TarWriter(stream, mtime=0, encoder=False) as tar:
        tar.write({"__key__": "k7", **broken})
    with pytest.raises(CorruptShard, match=f"{NAME}: sample k7"):
        decode_shard(stream.getvalue(), NAME)


def test_storage_that_gives_back_other_bytes_is_found_out(folder: Folder, samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    read = Folder.read
    monkeypatch.setattr(Folder, "read", lambda self, name: read(self, name)[:-1])
    with pytest.raises(CorruptShard, match=NAME):
        write_shard(folder, NAME, samples)


def test_tables_round_trip_also_without_rows(folder: Folder) -> None:
    schema = pa.schema([("key", pa.string()), ("label", pa.int64())])
    rows = [{"key": "a", "label": 1}, {"key": "b", "label": 2}]
    write_table(folder, "t.parquet", rows_to_table(rows, schema))
    assert read_table(folder, "t.parquet").to_pylist() == rows
    assert read_table(folder, "t.parquet", ["label"]).to_pylist() == [{"label": 1}, {"label": 2}]
    write_table(folder, "t.parquet", rows_to_table([], schema))
    assert read_table(folder, "t.parquet").schema == schema
    assert read_table(folder, "t.parquet").num_rows == 0
