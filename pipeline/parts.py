"""What a task leaves beside its shard, so that a restarted stage does not do it again.

A part is one Parquet file, written after the shard: the rows of its samples, and in the schema's metadata what the shard
is and what it was made from.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.shards import Shard, read_table, sha256, write_table
from pipeline.storage import Folder

PARTS = "parts"  # folder in the stage's folder; deleted when the stage is done
RECORD = b"part"


@dataclass(frozen=True)
class Part:
    """A finished shard: its manifest entry, one row per sample, and whatever else is to be combined at the end."""

    shard: Shard
    rows: pa.Table
    extra: dict[str, Any]  # JSON types


def write_part(stage_folder: Folder, part: Part, made_from: str) -> None:
    """Say that a shard is finished; to be called after the shard was written.

    Args:
        stage_folder: the stage's folder, in which the shard lies.
        part: what to keep; an empty shard (count 0) has no file.
        made_from: digest of everything that decides the shard's content.
    """
    shard = part.shard
    record = {"made_from": made_from, "name": shard.name, "sha256": shard.sha256, "count": shard.count, "extra": part.extra}
    rows = part.rows.replace_schema_metadata({RECORD: json.dumps(record)})
    write_table(stage_folder.child(PARTS), f"{shard.name}.parquet", rows)


def read_part(stage_folder: Folder, name: str, made_from: str) -> Part | None:
    """What an earlier attempt left of the shard `name`; None if it has to be made (again).

    That is so where there is no part, it is damaged or was made from something else, or the shard is not what it says.
    """
    try:
        rows = read_table(stage_folder.child(PARTS), f"{name}.parquet")
        record = json.loads((rows.schema.metadata or {})[RECORD])
        shard = Shard(record["name"], record["sha256"], record["count"])
        if record["made_from"] != made_from or (shard.count and sha256(stage_folder.read(name)) != shard.sha256):
            return None
        return Part(shard, rows.replace_schema_metadata(None), record["extra"])
    except (FileNotFoundError, pa.ArrowInvalid, KeyError, ValueError):
        return None
