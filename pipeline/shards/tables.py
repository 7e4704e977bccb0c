"""Parquet tables with a fixed schema, written whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.folder import Folder
from pipeline.storage.records import sha256

ROW_GROUP = 2**16  # rows that are in memory at a time when parts become one table
BATCH = 2**14  # rows that are in memory at a time when a table is streamed


def write_table(folder: Folder, name: str, table: pa.Table) -> str:
    """Write a whole Parquet table and return the digest of the file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    folder.write(name, data)
    return sha256(data)


def read_table(folder: Folder, name: str, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet table.

    Raises:
        FileNotFoundError: the file does not exist.
        pyarrow.ArrowInvalid: it is damaged.
    """
    return parse_table(folder.read(name), columns)


def parse_table(data: bytes, columns: list[str] | None = None) -> pa.Table:
    """Return the table in a Parquet file's bytes.

    Raises:
        pyarrow.ArrowInvalid: it is damaged.
    """
    # Not pq.read_table: a pool thread may release its buffer, which is a Python object, while the interpreter exits, and abort.
    return pq.ParquetFile(pa.BufferReader(data)).read(columns, use_threads=False)


def stream_table(folder: Folder, name: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield a Parquet table in batches, one in memory at a time; columns that the table lacks are left out.

    Raises:
        FileNotFoundError: the table is missing.
        pyarrow.ArrowInvalid: the table is damaged.
    """
    with folder.stream(name) as stream:
        file = pq.ParquetFile(stream)
        there = [column for column in columns if column in file.schema_arrow.names]
        yield from file.iter_batches(BATCH, columns=there, use_threads=False)
    pa.default_memory_pool().release_unused()  # Arrow would hold tens of megabytes for its next table


def stream_column(folder: Folder, name: str, column: str) -> Iterator[Any]:
    """Yield the values of one column of a Parquet table, of which a batch is in memory at a time.

    Raises:
        FileNotFoundError: the table is missing.
        pyarrow.ArrowInvalid: the table is damaged.
    """
    for batch in stream_table(folder, name, [column]):
        yield from batch[column].to_pylist()


def rows_to_table(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return a table of the rows. An empty list gives an empty table of the same schema."""
    return pa.Table.from_pylist(list(rows), schema=schema)
