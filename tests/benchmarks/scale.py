"""Scaling of the protect stage's machinery, without crafting: `python -m tests.benchmarks.scale`.

10,000 shards on eight local machines of one CPU each, crafted by a function that sleeps and leaves a part as the protect stage does.
This measures shards per second, the driver's memory, and the time that a start takes to find 9,000 shards finished.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from cluster.pool import run_all
from cluster.work import Capacity, Work
from pipeline.protection.release import PROTECTED_SCHEMA
from pipeline.results.machine import hardware
from pipeline.shards.finished_shards import read_finished_shards, write_rows
from pipeline.storage.folder import Folder
from pipeline.storage.layout import SAMPLES, finished_shard_record
from pipeline.storage.records import to_json
from tests.benchmarks.memory import resident
from tests.benchmarks.simulated import MADE_FROM, SLEEP_SECONDS, occupied, sleep_shard
from tests.fixtures.on_ray import RAY

# All simulated machines share the cores of this one; bookkeeping for the dashboard would take a core from them.
QUIET = {"RAY_enable_metrics_collection": "0", "RAY_task_events_report_interval_ms": "0"}


@dataclass(frozen=True)
class Sizes:
    """The sizes of a simulation."""

    shards: int
    images: int  # per shard
    nodes: int


def crafted(folder: Folder, names: list[str], images: int) -> Iterator[tuple[int, float]]:
    """Yield the number of finished shards and this process's memory in MiB, after each shard."""
    pieces = [Work(name, (folder, name, images), images) for name in names]
    for done, _ in enumerate(run_all(sleep_shard, pieces, what="simulated"), 1):
        yield done, resident("VmRSS")


def warm_up(folder: Folder, sizes: Sizes) -> None:
    """Wait until every machine has a worker with its imports done."""
    seen: set[str] = set()
    while len(seen) < sizes.nodes:
        names = [f"train-{number:06d}.tar" for number in range(2 * sizes.nodes)]
        seen |= {node for _, node in run_all(occupied, [Work(name, (folder, name)) for name in names], what="warm")}


def measure(folder: Folder, sizes: Sizes) -> dict[str, Any]:
    """Return the figures of one simulation in an empty folder."""
    names = [f"train-{number:06d}.tar" for number in range(sizes.shards)]
    warm_up(folder.child("first"), sizes)
    memory: dict[str, float] = {"before": resident("VmRSS")}
    begun = time.perf_counter()
    for done, mib in crafted(folder, names, sizes.images):
        if done in (sizes.shards // 10, sizes.shards // 2, sizes.shards):
            memory[str(done)] = mib
    crafting = time.perf_counter() - begun

    lost = sizes.shards // 10
    for name in names[sizes.shards - lost :]:
        folder.filesystem.delete_file(folder.file(finished_shard_record(name)))
    begun = time.perf_counter()
    parts = read_finished_shards(folder, names, MADE_FROM, RAY, Capacity())
    resume = time.perf_counter() - begun
    assert len(parts) == sizes.shards - lost
    begun = time.perf_counter()
    write_rows(folder, SAMPLES, list(parts.values()), PROTECTED_SCHEMA)
    return {
        "shards_per_second": round(sizes.shards / crafting, 1),
        "driver_mib": memory,
        "finished_shards": len(parts),
        "resume_seconds": round(resume, 2),
        "table_seconds": round(time.perf_counter() - begun, 2),
    }


def main() -> None:
    """Simulate and write the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=10, help="per shard")
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--card", type=Path, default=Path(__file__).parent / "scale.json")
    given = parser.parse_args()
    sizes = Sizes(given.shards, given.images, given.nodes)
    os.environ.update(QUIET)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(sizes.nodes):
        cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    ray.init(address=cluster.address, log_to_driver=False)
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(Folder.open(f"{scratch}/protect"), sizes)
    ray.shutdown()
    cluster.shutdown()
    command = f"python -m tests.benchmarks.scale --shards {sizes.shards} --images {sizes.images} --nodes {sizes.nodes}"
    card = {
        "command": command,
        "sleep_seconds": SLEEP_SECONDS,
        "environment": QUIET,
        **figures,
        "hardware": hardware(),
        "ray": ray.__version__,
    }
    given.card.write_bytes(to_json(card))
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
