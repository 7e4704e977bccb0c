"""Stand-ins for crafting, to measure only the machinery around it.

They have their own module, as tasks of the stages do: Ray would send the code of functions in a script along with every task.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pyarrow as pa
import ray

from pipeline.protection.release import PROTECTED_SCHEMA
from pipeline.shards.finished_shards import FinishedShard, write_finished_shard
from pipeline.shards.pixels import encode_png
from pipeline.shards.shard import Sample, encode_shard
from pipeline.shards.tables import rows_to_table
from pipeline.storage.folder import Folder
from pipeline.storage.records import sha256
from pipeline.storage.stage import Shard

MADE_FROM = "a simulation"
SLEEP_SECONDS = 0.01
WARM_SECONDS = 2.0


@lru_cache(maxsize=1)
def _content(images: int) -> tuple[bytes, Shard, pa.Table]:
    """Return the content of every shard, built once in a process, because building it is not measured."""
    png = encode_png(np.zeros((2, 2, 3), np.uint8))
    keys = [f"image-{i}" for i in range(images)]
    data = encode_shard([Sample(key, png, 0, b"{}") for key in keys])
    shard = Shard("any.tar", sha256(data), images)
    row = {"label": 0, "shard": shard.name, "sha256": "0" * 64, "clean_sha256": "0" * 64, "linf_levels": 8, "psnr_db": 30.0}
    return data, shard, rows_to_table([{"key": key, **row} for key in keys], PROTECTED_SCHEMA)


def sleep_shard(folder: Folder, name: str, images: int) -> FinishedShard:
    """Write a shard and its record, as crafting does."""
    time.sleep(SLEEP_SECONDS)
    data, shard, rows = _content(images)
    folder.write(name, data)
    return write_finished_shard(folder, replace(shard, name=name), rows, {"protected": images}, MADE_FROM)


def occupied(folder: Folder, name: str) -> str:
    """Return the machine of this task, after a wait that lets other machines get tasks as well."""
    sleep_shard(folder, name, 1)
    time.sleep(WARM_SECONDS)
    return str(ray.get_runtime_context().get_node_id())
