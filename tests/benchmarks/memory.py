"""Memory of crafting, each figure from a fresh process, in MiB."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from pipeline.protection.crafting import CraftingTask
from pipeline.protection.release import PROTECT
from pipeline.storage.stage import Shard
from sep.execution import use_cpu
from tests.benchmarks.trained import Trained, device

P = ParamSpec("P")
R = TypeVar("R")


def in_a_fresh_process(function: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    """Return the result of a module-level function in a new Python process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **named).result()


def resident(kind: str) -> float:
    """Return the memory of this process: VmRSS, now, or VmHWM, the peak so far.

    Peaks of getrusage are of no use: they begin with that of the parent process.
    """
    found = re.search(rf"^{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return round(int(found[1]) / 1024, 1)


def _crafting(kind: str, packed: bytes, images: int, batch_size: int, threads: int) -> dict[str, float]:
    trained: Trained = pickle.loads(packed)
    if kind == "plain":
        torch.set_num_threads(threads)
        networks = trained.plain_networks()
        before = resident("VmRSS")
        trained.plain_craft(networks, "sep-fa", images, 1, batch_size)
    else:
        use_cpu(threads)
        members = trained.members("sep-fa")
        before = resident("VmRSS")
        trained.craft(members, "sep-fa", images, 1)
    if device().type == "cuda":
        return {"gpu_peak_mib": round(torch.cuda.max_memory_allocated() / 2**20, 1)}
    return {"loaded_mib": before, "peak_mib": resident("VmHWM")}


def crafting(trained: Trained, images: int, batch_size: int) -> dict[str, dict[str, float]]:
    """Measure one outer step of feature alignment, by the plain loop in batches of `batch_size` and by the library.

    On a GPU this is the peak of its allocations; else the memory of the process with the ensemble loaded, and its peak.
    """
    assert len(trained.means) == len(trained.networks)  # computed here, because computing them takes memory as well
    packed = pickle.dumps(trained)
    return {kind: in_a_fresh_process(_crafting, kind, packed, images, batch_size, torch.get_num_threads()) for kind in ("plain", "ours")}


def _worker(task: CraftingTask, shards: Sequence[Shard], after: Sequence[int]) -> dict[str, float]:
    held = {}
    for number in range(1, max(after) + 1):
        PROTECT(task, shards[(number - 1) % len(shards)])
        if number in after:
            held[str(number)] = resident("VmRSS")
    return held


def of_a_worker(task: CraftingTask, shards: Sequence[Shard], after: Sequence[int]) -> dict[str, float]:
    """Measure one process after that many shards of the stage's task, with one outer step each: thirty take as much memory."""
    return in_a_fresh_process(_worker, replace(task, config=replace(task.config, steps=1)), shards, after)
