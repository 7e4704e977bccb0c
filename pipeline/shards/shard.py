"""WebDataset shards with deterministic bytes, and the images in them.

A shard is a tar of samples, three members each: `<key>.png` (8-bit RGB; `.jpg` or `.webp` of a file that is stored as it came),
`<key>.cls` (ASCII integer), `<key>.json`.
Legend: images are `(H, W, 3)` uint8 arrays of grey levels 0..255.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import webdataset as wds
from webdataset.tariterators import group_by_keys

from pipeline.shards.pixels import STARTS, Pixels, decode, extension
from pipeline.shards.tar import content, files, open_tar
from pipeline.storage.folder import Folder
from pipeline.storage.records import sha256
from pipeline.storage.stage import Shard

wds.utils.enforce_security = True  # a second lock, in every process: no shell commands as names of shards, no unpickling


class CorruptShard(ValueError):
    """The error of a shard that differs from its manifest entry. The message names the shard and says what to do."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image as it lies in a shard."""

    key: str
    image: bytes  # a PNG, or the JPEG or WebP file of the source
    label: int
    info: bytes  # the JSON member; the same bytes in the clean shard and the protected one

    @property
    def pixels(self) -> Pixels:
        """The decoded image, `(H, W, 3)`."""
        return decode(self.image)


def encode_shard(samples: Iterable[Sample]) -> bytes:
    """Return a tar of the samples, in the order given. The same samples always give the same bytes."""
    stream = io.BytesIO()
    with wds.TarWriter(stream, mtime=0, user="", group="", encoder=False) as tar:
        for sample in samples:
            image = {extension(sample.image): sample.image}
            tar.write({"__key__": sample.key, "cls": b"%d" % sample.label, "json": sample.info, **image})
    return stream.getvalue()


def decode_shard(data: bytes, name: str = "shard") -> list[Sample]:
    """Return the samples of a tar, in order, whatever their number. `read_shard` checks the number.

    Raises:
        CorruptShard: the tar is damaged, or a sample lacks a member, has a member twice, occurs twice, or its label is no integer.
    """
    samples: dict[str, Sample] = {}
    try:
        for group in group_by_keys(_members(data, name)):
            key = group["__key__"]
            try:
                (image,) = (group[name] for name in STARTS.values() if name in group)
                sample = Sample(key, image, int(group["cls"]), group["json"])
            except (KeyError, ValueError) as error:
                raise CorruptShard(f"{name}: sample {key} lacks a member, has two images or a broken label ({error!r})") from error
            if samples.setdefault(key, sample) is not sample:
                raise CorruptShard(f"{name}: sample {key} is there twice")
    except CorruptShard:
        raise
    except (tarfile.TarError, ValueError) as error:
        raise CorruptShard(f"{name}: damaged ({error.args[0]})") from error
    return list(samples.values())


def _members(data: bytes, name: str) -> Iterator[dict[str, Any]]:
    """Yield the members, for WebDataset to group. It is given bytes only: its own way of opening may unpack, unpickle or run a shell."""
    with open_tar(io.BytesIO(data)) as tar:
        for member in files(tar):
            yield {"fname": member.name, "data": content(tar, member), "__url__": name}


def read_shard(folder: Folder, shard: Shard) -> list[Sample]:
    """Return the samples of a shard, after checking the file against the manifest.

    A truncated tar reads as fewer samples without any error. So the digest is checked first and the count afterwards.

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


def write_shard(folder: Folder, name: str, samples: Sequence[Sample]) -> tuple[Shard, list[Sample]]:
    """Write a shard in one piece and fetch it once, to check it.

    Returns:
        Its manifest entry, and its samples as storage gave them back.

    Raises:
        CorruptShard: storage gave back other bytes than were written.
    """
    data = encode_shard(samples)
    shard = Shard(name, sha256(data), len(samples))
    folder.write(name, data)
    return shard, read_shard(folder, shard)
