"""What a method found over the whole training set before the first shard: tensors in files, and a record of them that is written last."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pipeline.storage.folder import Folder
from pipeline.storage.records import digest, sha256, to_json

RECORD = "prepared.json"
FILES = "prepared"  # folder in the stage's folder
EVERY = "every-shard"  # the file for shards that have none of their own


@dataclass(frozen=True)
class Prepared:
    """The record.

    Attributes:
        digest: of the record, and so of all files.
        without: shards that could not be read, where the stage was told to keep going.
        found: figures about it, for the manifest.
        seconds: it took to make, which is no part of the digest; 0 where nothing was made, or an earlier version did not say.
    """

    digest: str
    without: tuple[str, ...]
    found: dict[str, Any]
    seconds: float = 0


def write_file(folder: Folder, name: str, value: Tensor) -> str:
    """Write one file, for the shard `name` or `EVERY`; returns its hash."""
    stream = io.BytesIO()
    torch.save(value, stream)
    folder.child(FILES).write(f"{name}.pt", stream.getvalue())
    return sha256(stream.getvalue())


def write_record(folder: Folder, files: Mapping[str, str], found: Mapping[str, Any], seconds: float, without: Sequence[str] = ()) -> None:
    """Say that the files are whole, by name and hash."""
    said = {"files": dict(files), "found": dict(found), "without": sorted(without)}
    folder.write(RECORD, to_json(said | {"seconds": round(seconds, 1)}))


def _digest(said: Mapping[str, Any]) -> str:
    return digest({name: value for name, value in said.items() if name != "seconds"})


def read_prepared(folder: Folder, *, files: bool = False) -> Prepared | None:
    """What is recorded; None if there is nothing that can be read, or, with `files`, if one of them is not as recorded."""
    try:
        said = json.loads(folder.read(RECORD))
        if said.keys() - {"seconds"} != {"files", "found", "without"}:
            return None
        if files and any(folder.child(FILES).sha256(f"{name}.pt") != own for name, own in said["files"].items()):
            return None
        return Prepared(_digest(said), tuple(said["without"]), said["found"], said.get("seconds", 0))
    except (FileNotFoundError, ValueError, AttributeError):
        return None


@lru_cache(maxsize=1)
def _files(folder: Folder, recorded: str) -> dict[str, str]:
    said = json.loads(folder.read(RECORD))
    if _digest(said) != recorded:
        raise ValueError(f"{folder.uri}/{RECORD} was altered while it was in use: run the protect stage again")
    files: dict[str, str] = said["files"]
    return files


def load_prepared(folder: Folder, recorded: str, shard: str) -> Tensor:
    """What was found for the images of a shard.

    Raises:
        ValueError: a file was altered since it was written.
    """
    files = _files(folder, recorded)
    name = shard if shard in files else EVERY
    return _load(folder, name, files[name])


@lru_cache(maxsize=1)  # what is for every shard is read once
def _load(folder: Folder, name: str, expected: str) -> Tensor:
    data = folder.child(FILES).read(f"{name}.pt")
    if sha256(data) != expected:
        raise ValueError(f"{folder.uri}/{FILES}/{name}.pt was altered while it was in use: run the protect stage again")
    value: Tensor = torch.load(io.BytesIO(data), weights_only=True)
    return value
