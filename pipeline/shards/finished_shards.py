"""Finished shards of an unfinished stage: each has a table of its samples and a record, and the tables become one in the end.

The Parquet table and the record lie beside the shard, in `parts/`. By the records, a stage that starts again finds the shards that need
not be made again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.executor import Executor
from cluster.work import Capacity, Work
from pipeline.shards.tables import ROW_GROUP, parse_table, write_table
from pipeline.storage.finished_pieces import Piece, read_piece, write_piece
from pipeline.storage.folder import Folder
from pipeline.storage.layout import PARTS, finished_shard_record, finished_shard_table
from pipeline.storage.records import sha256
from pipeline.storage.stage import Shard

CHECKED_TOGETHER = 100  # shards that one task reads again
READ_TOGETHER = 8  # files at a time; an object store takes no longer for eight than for one


@dataclass(frozen=True)
class FinishedShard:
    """A finished shard: its manifest entry, the digest of its table of rows, and whatever else is to be combined at the end."""

    shard: Shard
    rows_sha256: str
    extra: dict[str, Any]  # JSON types


def write_finished_shard(stage_folder: Folder, shard: Shard, rows: pa.Table, extra: dict[str, Any], made_from: str) -> FinishedShard:
    """Record that a shard is finished. Call this after the shard was written.

    Args:
        stage_folder: the stage's folder, in which the shard lies.
        shard: as written; an empty one (count 0) has no file.
        rows: one per sample.
        extra: JSON types.
        made_from: digest of everything that decides the shard's content.
    """
    name = shard.name
    rows_sha256 = write_table(stage_folder, finished_shard_table(name), rows)
    files = {finished_shard_table(name): rows_sha256} | ({name: shard.sha256} if shard.count else {})
    write_piece(stage_folder, finished_shard_record(name), Piece(made_from, {"count": shard.count, "extra": extra}, files))
    return FinishedShard(shard, rows_sha256, extra)


def read_finished_shard(stage_folder: Folder, name: str, made_from: str) -> FinishedShard | None:
    """Return the finished shard `name`, or None if it has to be made (again): see `read_piece`."""
    if (piece := read_piece(stage_folder, finished_shard_record(name), made_from)) is None:
        return None
    shard = Shard(name, piece.files.get(name, ""), piece.content["count"])
    return FinishedShard(shard, piece.files[finished_shard_table(name)], piece.content["extra"])


def _read_several(stage_folder: Folder, names: Sequence[str], made_from: str) -> list[FinishedShard]:
    with ThreadPoolExecutor(READ_TOGETHER) as pool:
        read = pool.map(lambda name: read_finished_shard(stage_folder, name, made_from), names)
        return [finished for finished in read if finished is not None]


def read_finished_shards(
    stage_folder: Folder, names: Iterable[str], made_from: str, executor: Executor, capacity: Capacity
) -> dict[str, FinishedShard]:
    """Return by name the shards that need not be made again. Tasks read and check every one of them.

    Raises:
        WorkFailed: storage gave up.
    """
    there = {name.removesuffix(".json") for name in stage_folder.child(PARTS).names() if name.endswith(".json")}
    known = [name for name in names if name in there]
    groups = [known[start : start + CHECKED_TOGETHER] for start in range(0, len(known), CHECKED_TOGETHER)]
    pieces = [Work(f"{group[0]} ...", (stage_folder, group, made_from), len(group)) for group in groups]
    found = executor.run_all(_read_several, pieces, what="finished before", unit="shards", capacity=capacity)
    return {finished.shard.name: finished for _, several in found for finished in several}


def _rows(stage_folder: Folder, finished: FinishedShard) -> pa.Table:
    name = finished_shard_table(finished.shard.name)
    data = stage_folder.read(name)
    if sha256(data) != finished.rows_sha256:
        raise ValueError(f"{stage_folder.uri}/{name} was altered while it was in use: run the stage again")
    return parse_table(data)


def write_rows(stage_folder: Folder, name: str, finished: Sequence[FinishedShard], schema: pa.Schema) -> None:
    """Write the rows of all finished shards, in the order given, as one table. One row group is in memory at a time.

    Raises:
        ValueError: the rows of a shard were altered since they were written.
    """
    with tempfile.TemporaryFile() as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer, ThreadPoolExecutor(READ_TOGETHER) as pool:
            group: list[pa.Table] = []
            for start in range(0, len(finished), READ_TOGETHER):
                group += pool.map(partial(_rows, stage_folder), finished[start : start + READ_TOGETHER])
                if sum(table.num_rows for table in group) >= ROW_GROUP:
                    writer.write_table(pa.concat_tables(group))
                    group.clear()
            if group:
                writer.write_table(pa.concat_tables(group))
        stage_folder.write(name, file)
