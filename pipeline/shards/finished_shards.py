"""What a task leaves beside its shard, so that a restarted stage does not do it again, and how the parts become one table.

A part is two files: a Parquet table with the rows of the shard's samples and, written last, a record of what the shard is and
what it was made from. The records are small: whoever starts a stage again reads them alone.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.executor import Executor
from cluster.work import Capacity, Work
from pipeline.shards.tables import ROW_GROUP, parse_table, write_table
from pipeline.storage.folder import Folder
from pipeline.storage.records import digest, sha256, to_json
from pipeline.storage.stage import Shard

PARTS = "parts"  # folder in the stage's folder; deleted when the stage is done
CHECKED_TOGETHER = 100  # shards that one task reads again
READ_TOGETHER = 8  # files at a time, which costs an object store no more than one


@dataclass(frozen=True)
class FinishedShard:
    """A finished shard: its manifest entry, the digest of its table of rows, and whatever else is to be combined at the end."""

    shard: Shard
    rows_sha256: str
    extra: dict[str, Any]  # JSON types


def write_part(stage_folder: Folder, shard: Shard, rows: pa.Table, extra: dict[str, Any], made_from: str) -> FinishedShard:
    """Say that a shard is finished; to be called after the shard was written.

    Args:
        stage_folder: the stage's folder, in which the shard lies.
        shard: as written; an empty one (count 0) has no file.
        rows: one per sample.
        extra: JSON types.
        made_from: digest of everything that decides the shard's content.
    """
    parts = stage_folder.child(PARTS)
    part = FinishedShard(shard, write_table(parts, f"{shard.name}.parquet", rows), extra)
    record = {"made_from": made_from, **asdict(part)}
    parts.write(f"{shard.name}.json", to_json({"record": record, "sha256": digest(record)}))
    return part


def read_part(stage_folder: Folder, name: str, made_from: str) -> FinishedShard | None:
    """What an earlier attempt left of the shard `name`; None if it has to be made (again).

    That is so where there is no part, it is damaged or was made from something else, or shard or rows are not what it says.
    """
    parts = stage_folder.child(PARTS)
    try:
        said = json.loads(parts.read(f"{name}.json"))
        record = said["record"]
        if digest(record) != said["sha256"] or record.pop("made_from") != made_from:
            return None
        part = FinishedShard(**{**record, "shard": Shard(**record["shard"])})
        if part.shard.count and stage_folder.sha256(name) != part.shard.sha256:
            return None
        return part if parts.sha256(f"{name}.parquet") == part.rows_sha256 else None
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None


def _read_several(stage_folder: Folder, names: Sequence[str], made_from: str) -> list[FinishedShard]:
    with ThreadPoolExecutor(READ_TOGETHER) as pool:
        return [part for part in pool.map(lambda name: read_part(stage_folder, name, made_from), names) if part is not None]


def finished_parts(
    stage_folder: Folder, names: Iterable[str], made_from: str, executor: Executor, capacity: Capacity
) -> dict[str, FinishedShard]:
    """The parts of those shards that need not be made again, by name; every one of them was read and checked by the executor.

    Raises:
        WorkFailed: storage gave up.
    """
    there = {name.removesuffix(".json") for name in stage_folder.child(PARTS).names() if name.endswith(".json")}
    known = [name for name in names if name in there]
    groups = [known[start : start + CHECKED_TOGETHER] for start in range(0, len(known), CHECKED_TOGETHER)]
    pieces = [Work(f"{group[0]} ...", (stage_folder, group, made_from), len(group)) for group in groups]
    found = executor.run_all(_read_several, pieces, what="finished before", unit="shards", capacity=capacity)
    return {part.shard.name: part for _, parts in found for part in parts}


def _rows(stage_folder: Folder, part: FinishedShard, schema: pa.Schema) -> pa.Table:
    folder, name = stage_folder.child(PARTS), f"{part.shard.name}.parquet"
    data = folder.read(name)
    if sha256(data) != part.rows_sha256:
        raise ValueError(f"{folder.uri}/{name} was altered while it was in use: run the stage again")
    # What an earlier version left of an interrupted stage may lack columns that came since: there they are null.
    return pa.concat_tables([schema.empty_table(), parse_table(data)], promote_options="default")


def write_rows(stage_folder: Folder, name: str, parts: Sequence[FinishedShard], schema: pa.Schema) -> None:
    """Write the rows of all parts, in the order given, as one table, of which one row group is in memory at a time.

    Raises:
        ValueError: rows are not those the part was written with.
    """
    with tempfile.TemporaryFile() as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer, ThreadPoolExecutor(READ_TOGETHER) as pool:
            group: list[pa.Table] = []
            for start in range(0, len(parts), READ_TOGETHER):
                group += pool.map(lambda part: _rows(stage_folder, part, schema), parts[start : start + READ_TOGETHER])
                if sum(table.num_rows for table in group) >= ROW_GROUP:
                    writer.write_table(pa.concat_tables(group))
                    group.clear()
            if group:
                writer.write_table(pa.concat_tables(group))
        stage_folder.write(name, file)
