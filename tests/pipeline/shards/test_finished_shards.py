"""Parts of an interrupted stage become one table, also those that an earlier version left."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from pipeline.shards.finished_shards import FinishedShard, write_part, write_rows
from pipeline.shards.tables import read_table, rows_to_table
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Shard

NOW = pa.schema({"key": pa.string(), "psnr_db": pa.float64(), "ssim": pa.float64()})
BEFORE = pa.schema({"key": pa.string(), "psnr_db": pa.float64()})


def part(folder: Folder, name: str, schema: pa.Schema) -> FinishedShard:
    rows = [{"key": f"{name}-{i}", "psnr_db": 30.0 + i, "ssim": 0.9} for i in range(2)]
    return write_part(folder, Shard(name, "0" * 64, 2), rows_to_table(rows, schema), {}, "made from")


def test_columns_that_came_since_are_null_in_parts_of_an_earlier_version(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    parts = [part(folder, "old", BEFORE), part(folder, "new", NOW)]
    write_rows(folder, "samples.parquet", parts, NOW)
    table = read_table(folder, "samples.parquet")
    assert table.schema.equals(NOW)
    assert table["key"].to_pylist() == ["old-0", "old-1", "new-0", "new-1"]
    assert table["psnr_db"].to_pylist() == [30.0, 31.0, 30.0, 31.0]
    assert table["ssim"].to_pylist() == [None, None, 0.9, 0.9]
