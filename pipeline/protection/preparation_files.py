"""Files of a preparation: tensors that a method learned from the whole training set, and their record as a finished piece."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from pipeline.storage.finished_pieces import Piece, read_piece, write_piece
from pipeline.storage.folder import Folder
from pipeline.storage.layout import EVERY_SHARD, PREPARED_RECORD, prepared_file
from pipeline.storage.records import digest, sha256


@dataclass(frozen=True)
class Prepared:
    """A finished preparation, or the defaults where the method needs none.

    Attributes:
        digest: of everything but the seconds.
        files: SHA-256 of each file, by name in the stage's folder.
        found: figures for the manifest.
        without: shards that could not be read, where the stage was asked to keep going.
        seconds: that it took.
    """

    digest: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    found: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    seconds: float = 0


def write_file(folder: Folder, shard: str, value: Any) -> dict[str, str]:
    """Write the tensor, or the tensors, for the images of a shard, or of `EVERY_SHARD`; return the file's name and hash."""
    stream = io.BytesIO()
    torch.save(value, stream)
    folder.write(prepared_file(shard), stream.getvalue())
    return {prepared_file(shard): sha256(stream.getvalue())}


def write_prepared(
    folder: Folder, made_from: str, files: Mapping[str, str], found: Mapping[str, Any], seconds: float, without: Sequence[str] = ()
) -> None:
    """Record that a preparation is finished. Call this after its files were written."""
    content = {"found": dict(found), "seconds": round(seconds, 3), "without": sorted(without)}
    write_piece(folder, PREPARED_RECORD, Piece(made_from, content, dict(files)))


def read_prepared(folder: Folder, made_from: str | None, *, check_files: bool = True) -> Prepared | None:
    """Return the preparation in the stage's folder, or None if it has to be made (again): see `read_piece`."""
    if (piece := read_piece(folder, PREPARED_RECORD, made_from, check_files=check_files)) is None:
        return None
    found, without = piece.content["found"], piece.content["without"]
    return Prepared(digest([piece.files, found, without]), piece.files, found, tuple(without), piece.content["seconds"])


def load_prepared(folder: Folder, recorded: str, shard: str = EVERY_SHARD) -> Any:
    """Return the tensor, or the tensors, for the images of a shard.

    Raises:
        ValueError: the record or the file was altered since it was written.
    """
    files = _files(folder, recorded)
    name = prepared_file(shard) if prepared_file(shard) in files else prepared_file()
    return _load(folder, name, files[name])


@lru_cache(maxsize=1)
def _files(folder: Folder, recorded: str) -> Mapping[str, str]:
    prepared = read_prepared(folder, None, check_files=False)  # each file is checked when it is loaded
    if prepared is None or prepared.digest != recorded:
        raise ValueError(f"{folder.uri}/{PREPARED_RECORD} was altered while it was in use: run the protect stage again")
    return prepared.files


@lru_cache(maxsize=1)  # the file for every shard is read once
def _load(folder: Folder, name: str, expected: str) -> Any:
    data = folder.read(name)
    if sha256(data) != expected:
        raise ValueError(f"{folder.uri}/{name} was altered while it was in use: run the protect stage again")
    return torch.load(io.BytesIO(data), weights_only=True)
