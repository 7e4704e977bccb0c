"""The protect stage, with its reads, writes and checks, against bare processes that craft with the same members."""

from __future__ import annotations

import io
import pickle
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, cast

import torch

from cluster import session
from cluster.processes import cpus
from pipeline.config.presets import preset
from pipeline.config.schema import RunConfig
from pipeline.protection import crafting
from pipeline.protection.checkpoints import Ensemble, choose, read_index, weights_digest
from pipeline.protection.preparation_files import read_prepared
from pipeline.stages import pack, protect
from pipeline.storage.folder import Folder
from pipeline.storage.layout import CHECKPOINTS
from pipeline.storage.records import sha256, to_json
from pipeline.storage.stage import Manifest, Stage
from sep.budget import Budget
from sep.choices import NetworkName
from sep.execution import use_cpu
from sep.methods.registry import Method
from tests.benchmarks import memory
from tests.benchmarks.trained import EPS_LEVELS, Trained, device
from tests.fixtures.on_ray import RAY

RECIPES: dict[Method, int] = {"sep-fa-vr": 30, "sep-fa-drawn": 15}  # steps: victims fare alike (docs/results.md)

_together: Barrier


@dataclass(frozen=True)
class Prepared:
    """A run that lacks only its protect stage."""

    config: RunConfig
    folder: Folder
    trained: Trained
    workers: int
    ray_seconds: float


def prepare(root: Path, trained: Trained, steps: int) -> Prepared:
    """Pack the images that `trained` was trained on, and put its checkpoints beside them."""
    workers = 1 if device().type == "cuda" else cpus()
    base, images, epochs = preset("quickstart"), len(trained.images), len(trained.networks)
    config = replace(
        base,
        run=str(root),
        workers=workers,
        pack=replace(base.pack, max_train_images=images, max_test_images=10, shard_images=max(1, min(250, images // (4 * workers)))),
        surrogate=replace(base.surrogate, networks=(cast(NetworkName, trained.name),), epochs=epochs),
        protect=replace(base.protect, method="sep-fa", eps_levels=EPS_LEVELS, checkpoints=epochs, steps=steps),
    )
    folder = Folder.open(config.run)
    begun = time.monotonic()
    session.connect(workers)
    ray_seconds = time.monotonic() - begun
    pack.execute(config, folder, RAY)
    stage, index = Stage(folder, "surrogate", {"network": trained.name}, seed=0, inputs=("pack",), overwrite=False), []
    for epoch, network in enumerate(trained.networks):
        stream, file = io.BytesIO(), f"epoch_{epoch:04d}/weights.pt"
        torch.save(network.state_dict(), stream)
        stage.folder.write(file, stream.getvalue())
        index.append({"network": trained.name, "epoch": epoch, "file": file, "sha256": sha256(stream.getvalue()), "metrics": {}})
    stage.folder.write(CHECKPOINTS, to_json({"checkpoints": index}))
    stage.finish({"networks": [trained.name], "weights_sha256": weights_digest(index)})
    return Prepared(config, folder, trained, workers, ray_seconds)


def _start_together(barrier: Barrier) -> None:
    global _together
    _together = barrier


def _craft(packed: bytes, rows: slice, steps: int) -> tuple[float, float]:
    """Return the times at which this process began and ended crafting, after loading the ensemble and a warm-up."""
    trained: Trained = pickle.loads(packed)
    use_cpu(1)
    members = trained.members("sep-fa")
    part = Trained(trained.name, trained.images[rows], trained.labels[rows], trained.networks)
    part.craft(members, "sep-fa", 64, 1)
    _together.wait()
    begun = time.monotonic()
    part.craft(members, "sep-fa", len(part.images), steps)
    return begun, time.monotonic()


def bare_rate(trained: Trained, processes: int, steps: int) -> float:
    """Return images per second of single-threaded processes that only craft: no Ray, no files, no PNGs."""
    assert trained.means  # computed once here, not by each process
    packed, context, each = pickle.dumps(trained), get_context("spawn"), len(trained.images) // processes
    rows = [slice(i * each, (i + 1) * each) for i in range(processes)]
    with ProcessPoolExecutor(processes, context, _start_together, (context.Barrier(processes),)) as pool:
        times = list(pool.map(_craft, [packed] * processes, rows, [steps] * processes))
    return each * processes / (max(end for _, end in times) - min(begun for begun, _ in times))


def measure(prepared: Prepared) -> dict[str, Any]:
    """Measure bare, stage, bare: the stage's crafting rate against the mean of the other two, and its other time."""
    config, trained, steps = prepared.config, prepared.trained, prepared.config.protect.steps
    first = bare_rate(trained, prepared.workers, steps)
    manifest = protect.execute(config, prepared.folder, RAY)
    bare = statistics.fmean([first, bare_rate(trained, prepared.workers, steps)])
    images, rate = len(trained.images), manifest.timing["images_per_second"]
    return {
        "network": trained.name,
        "method": config.protect.method,
        "images": images,
        "shards": len(manifest.shards["train"]),
        "checkpoints": len(trained.networks),
        "steps": steps,
        "workers": prepared.workers,
        "bare_images_per_second": round(bare, 1),
        "stage_images_per_second": round(rate, 1),
        "ratio": round(rate / bare, 3),
        "crafting_seconds": round(images / rate, 1),
        "other_seconds": round(manifest.seconds - images / rate, 1),  # class means, similarity of gradients, tables
        "ray_start_seconds": round(prepared.ray_seconds, 1),
        "images_per_second_with_all": round(images / (manifest.seconds + prepared.ray_seconds), 1),
    }


def by_workers(prepared: Prepared, measured: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return images per second of the stage and of bare processes, for one worker and for one per core, from `measure`."""
    every = str(prepared.workers)
    rates = {kind: {every: measured[f"{kind}_images_per_second"]} for kind in ("stage", "bare")}
    if prepared.workers > 1:
        prepared.folder.child("protect").delete()
        rates["bare"]["1"] = round(bare_rate(prepared.trained, 1, prepared.config.protect.steps), 1)
        manifest = protect.execute(replace(prepared.config, workers=1), prepared.folder, RAY)
        rates["stage"]["1"] = round(manifest.timing["images_per_second"], 1)
    return rates


def by_recipe(prepared: Prepared, quick: bool) -> list[dict[str, Any]]:
    """Measure the whole stage, with class means and tables, by the paper's best method and by the recipe that protects as well."""
    rows = []
    for method, steps in RECIPES.items():
        prepared.folder.child("protect").delete()
        config = replace(prepared.config, protect=replace(prepared.config.protect, method=method, steps=2 if quick else steps))
        manifest = protect.execute(config, prepared.folder, RAY)
        rows.append(
            {
                "method": method,
                "gradients_per_image": config.protect.gradients_per_image(len(prepared.trained.networks)),
                "crafting_images_per_second": round(manifest.timing["images_per_second"], 1),
                "images_per_second": round(manifest.counts["images"] / manifest.seconds, 1),
            }
        )
    return rows


def worker_memory(prepared: Prepared, after: tuple[int, ...]) -> dict[str, float]:
    """Measure one worker after that many shards; the stage has run, and its shards are crafted again."""
    config, folder = prepared.config.protect, prepared.folder
    ensemble = Ensemble(folder, choose(read_index(folder), config.per_network), config.kernels, device().type == "cuda")
    out = folder.child("protect")
    means = read_prepared(out, None)
    assert means is not None
    task = crafting.CraftingTask(
        ensemble=ensemble,
        config=config,
        seed=prepared.config.seed,
        made_from="memory",
        classes=tuple(range(len(Manifest.load(folder, "pack").counts["classes"]))),
        clean=folder.child("pack"),
        out=out,
        prepared=out,
        prepared_sha256=means.digest,
        budget=Budget("linf", config.eps_levels),
    )
    return memory.of_a_worker(task, Manifest.load(folder, "pack").shards["train"], after)
