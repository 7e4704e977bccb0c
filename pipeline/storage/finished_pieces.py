"""The record of a finished piece of work, such as a shard, a preparation or a trial.

A piece is a JSON record and the files that the record names. The record is written last, so a piece that was cut short has none:

```
{"version": 1, "made_from": "<digest>", "files": {"<name>": "<sha256>"}, "content": {...}, "sha256": "<digest of all this>"}
```

A stage that starts again takes over the whole pieces whose `made_from` is the one it expects, and makes all others anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.storage.folder import Folder
from pipeline.storage.records import digest, to_json

VERSION = 1  # of the record


@dataclass(frozen=True)
class Piece:
    """A finished piece.

    Attributes:
        made_from: digest of everything that decides what the piece is.
        content: what is to be known of it, as JSON types.
        files: SHA-256 of each of its files, by the name in the record's folder.
    """

    made_from: str
    content: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)


def write_piece(folder: Folder, name: str, piece: Piece) -> None:
    """Write the record `name`, after the files of the piece were written."""
    record = {"version": VERSION, "made_from": piece.made_from, "files": piece.files, "content": piece.content}
    folder.write(name, to_json({**record, "sha256": digest(record)}))


def read_piece(folder: Folder, name: str, made_from: str | None, *, check_files: bool = True) -> Piece | None:
    """Return the piece with the record `name`, or None if it has to be made (again).

    It has to be made if the record is missing, damaged, of another version or has another `made_from`, or if a file is missing or was
    altered.

    Args:
        folder: where the record lies; the names of the files are relative to it.
        name: of the record.
        made_from: the digest to expect; None where a finished stage vouches for the piece.
        check_files: whether to read the files; without it the record alone counts.
    """
    try:
        record = json.loads(folder.read(name))
        if not _is_whole(record) or made_from not in (None, record["made_from"]):
            return None
        piece = Piece(record["made_from"], record["content"], record["files"])
        altered = check_files and any(folder.sha256(file) != sha256 for file, sha256 in piece.files.items())
        return None if altered else piece
    except (FileNotFoundError, ValueError):
        return None


def _is_whole(record: Any) -> bool:
    if not isinstance(record, Mapping) or record.get("version") != VERSION:
        return False
    return record.get("sha256") == digest({name: value for name, value in record.items() if name != "sha256"})
