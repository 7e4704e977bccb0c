"""WebDataset shards with deterministic bytes, the images in them, and the Parquet tables that describe them.

A shard is a tar of samples, three members each: `<key>.png` (8-bit RGB), `<key>.cls` (ASCII integer), `<key>.json`.
Legend: images are `(H, W, 3)` uint8 arrays of grey levels 0..255.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset as wds
from numpy.typing import NDArray
from PIL import Image
from webdataset.tariterators import group_by_keys

from pipeline.storage.folder import Folder
from pipeline.storage.records import sha256
from pipeline.storage.stage import Shard
from pipeline.tar_members import content, files, open_tar

wds.utils.enforce_security = True  # a second lock, in every process: no shell commands as names of shards, no unpickling

Pixels = NDArray[np.uint8]
LAST_CHUNK = b"\0\0\0\0IEND\xaeB`\x82"


class CorruptShard(ValueError):
    """A shard is not what the manifest says it is; the message names the shard and what to do."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image as it lies in a shard."""

    key: str
    png: bytes
    label: int
    info: bytes  # the JSON member, kept byte for byte from the clean shard to the protected one

    @property
    def pixels(self) -> Pixels:
        """The decoded image, `(H, W, 3)`."""
        return decode_png(self.png)


def encode_png(pixels: Pixels) -> bytes:
    """A lossless PNG of `(H, W, 3)` levels; the same pixels always give the same bytes for one version of Pillow."""
    stream = io.BytesIO()
    Image.fromarray(pixels, "RGB").save(stream, "png")
    return stream.getvalue()


def decode_png(data: bytes) -> Pixels:
    """The `(H, W, 3)` levels of a PNG.

    Raises:
        OSError, SyntaxError: the bytes are not a whole PNG.
    """
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        return np.array(image.convert("RGB"))


def decode_whole_png(png: bytes) -> Pixels:
    """The `(H, W, 3)` levels of a PNG, after checking every chunk's checksum, which decoding alone skips.

    Raises:
        Exception: whatever damaged bytes make the decoder raise.
    """
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        image.verify()
    if not png.endswith(LAST_CHUNK):
        raise ValueError("broken end")
    return decode_png(png)


def pixels_sha256(pixels: Pixels) -> str:
    """Digest of an image's decoded levels (row by row, RGB), independent of how it was compressed."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def encode_shard(samples: Iterable[Sample]) -> bytes:
    """A tar of the samples, in the order given; the same samples always give the same bytes."""
    stream = io.BytesIO()
    with wds.TarWriter(stream, mtime=0, user="", group="", encoder=False) as tar:
        for sample in samples:
            tar.write({"__key__": sample.key, "cls": b"%d" % sample.label, "json": sample.info, "png": sample.png})
    return stream.getvalue()


def decode_shard(data: bytes, name: str = "shard") -> list[Sample]:
    """The samples of a tar, in order. Does not know how many there should be: see `read_shard`.

    Raises:
        CorruptShard: the tar is damaged, or a sample lacks a member, has one twice, is there twice, or its label is no integer.
    """
    samples: dict[str, Sample] = {}
    try:
        for group in group_by_keys(_members(data, name)):
            key = group["__key__"]
            try:
                sample = Sample(key, group["png"], int(group["cls"]), group["json"])
            except (KeyError, ValueError) as error:
                raise CorruptShard(f"{name}: sample {key} lacks a member or has a broken label ({error!r})") from error
            if samples.setdefault(key, sample) is not sample:
                raise CorruptShard(f"{name}: sample {key} is there twice")
    except CorruptShard:
        raise
    except (tarfile.TarError, ValueError) as error:
        raise CorruptShard(f"{name}: damaged ({error.args[0]})") from error
    return list(samples.values())


def _members(data: bytes, name: str) -> Iterator[dict[str, Any]]:
    """What WebDataset groups into samples. It is given bytes only: its own way of opening may unpack, unpickle or run a shell."""
    with open_tar(io.BytesIO(data)) as tar:
        for member in files(tar):
            yield {"fname": member.name, "data": content(tar, member), "__url__": name}


def read_shard(folder: Folder, shard: Shard) -> list[Sample]:
    """The samples of a shard, after checking the file against the manifest.

    A truncated tar reads as fewer samples without any error, hence the digest first and the count afterwards.

    Raises:
        CorruptShard: the file is missing, was altered, or holds another number of samples than recorded.
    """
    where = f"{folder.uri}/{shard.name}"
    try:
        data = folder.read(shard.name)
    except FileNotFoundError as error:
        raise CorruptShard(f"{where} is missing: delete {folder.uri} and run that stage again") from error
    if sha256(data) != shard.sha256:
        raise CorruptShard(f"{where} was altered or truncated since it was written: delete {folder.uri} and run that stage again")
    samples = decode_shard(data, where)
    if len(samples) != shard.count:
        raise CorruptShard(f"{where}: expected {shard.count} samples, found {len(samples)}")
    return samples


def write_shard(folder: Folder, name: str, samples: Sequence[Sample]) -> Shard:
    """Write a shard in one piece and return its manifest entry, taken from what storage gives back.

    Raises:
        CorruptShard: storage gave back other bytes than were written.
    """
    data = encode_shard(samples)
    shard = Shard(name, sha256(data), len(samples))
    folder.write(name, data)
    read_shard(folder, shard)
    return shard


def write_table(folder: Folder, name: str, table: pa.Table) -> str:
    """Write a Parquet table whole, and return the digest of the file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    folder.write(name, data)
    return sha256(data)


def read_table(folder: Folder, name: str, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet table.

    Raises:
        FileNotFoundError: it is not there.
        pyarrow.ArrowInvalid: it is damaged.
    """
    return parse_table(folder.read(name), columns)


def parse_table(data: bytes, columns: list[str] | None = None) -> pa.Table:
    """The table in a Parquet file's bytes.

    Raises:
        pyarrow.ArrowInvalid: it is damaged.
    """
    # Not pq.read_table: a pool thread may release its buffer, which is a Python object, while the interpreter exits, and abort.
    return pq.ParquetFile(pa.BufferReader(data)).read(columns, use_threads=False)


def rows_to_table(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """A table of the rows; an empty list gives an empty table of the same schema."""
    return pa.Table.from_pylist(list(rows), schema=schema)
