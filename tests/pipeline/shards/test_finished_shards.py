"""Finished shards: their tables are joined into one."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.shards.finished_shards import FinishedShard, write_finished_shard, write_rows
from pipeline.shards.tables import read_table, rows_to_table
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Shard

SCHEMA = pa.schema({"key": pa.string(), "psnr_db": pa.float64()})


def part(folder: Folder, name: str) -> FinishedShard:
    rows = [{"key": f"{name}-{i}", "psnr_db": 30.0 + i} for i in range(2)]
    return write_finished_shard(folder, Shard(name, "0" * 64, 2), rows_to_table(rows, SCHEMA), {}, "made from")


def test_tables_of_shards_become_one_in_the_order_given(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    write_rows(folder, "samples.parquet", [part(folder, name) for name in ("b", "a")], SCHEMA)
    table = read_table(folder, "samples.parquet")
    assert table.schema.equals(SCHEMA)
    assert table.to_pydict() == {"key": ["b-0", "b-1", "a-0", "a-1"], "psnr_db": [30.0, 31.0, 30.0, 31.0]}


def test_a_table_that_was_altered_in_the_meantime_is_named(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    parts = [part(folder, name) for name in ("b", "a")]
    folder.write("parts/a.parquet", folder.read("parts/a.parquet")[:-1])
    with pytest.raises(ValueError, match=r"parts/a\.parquet was altered while it was in use: run the stage again"):
        write_rows(folder, "samples.parquet", parts, SCHEMA)
    assert not folder.exists("samples.parquet")
