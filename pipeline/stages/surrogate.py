"""Stage 2: clean shards become one checkpoint per epoch of a network, or of several networks, trained one after the other.

Every epoch's weights are saved; checkpoints are chosen without looking at any test image.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from typing import Any

from cluster.executor import Executor
from cluster.progress import Epochs
from cluster.resources import Resources
from pipeline.config.class_selection import protected_classes
from pipeline.config.schema import RunConfig
from pipeline.config.sight import recorded_input, recorded_views
from pipeline.protection.checkpoints import weights_digest
from pipeline.results.waiting import waiting_percent
from pipeline.shards.sizes import image_bytes
from pipeline.storage.folder import Folder
from pipeline.storage.layout import CHECKPOINTS, WEIGHTS
from pipeline.storage.records import to_json
from pipeline.storage.stage import Manifest, Stage, read_started
from pipeline.training.batches import fits
from pipeline.training.initial import new_network, recorded_training, resizes
from pipeline.training.surrogate_loop import SurrogateTask, loop

log = logging.getLogger(__name__)
METRICS = ("loss", "accuracy", "lr", "seconds", "waiting_seconds")  # of an epoch; those that earlier versions trained lack the last one


def execute(config: RunConfig, folder: Folder, executor: Executor) -> Manifest:
    """Train the surrogate's networks, from the last epoch that an earlier start has saved.

    Raises:
        ValueError: the pack stage has not finished, was done with another configuration, or lacks a class that is to be protected;
            pretrained weights cannot be had.
        TrainingFailed: training broke off for good.
    """
    pack = Manifest.load(folder, "pack")
    section = _section(config, folder, pack)
    stage = Stage(folder, "surrogate", section, seed=config.seed, inputs=(pack,), overwrite=config.overwrite)
    if stage.manifest:
        return stage.manifest
    if "protect" in config.stages:  # now, and not after hours of training
        protected_classes(config, pack.counts["classes"])
    resources = executor.connect(config.workers)
    names, initial = config.surrogate.trained, config.surrogate.pretrained
    networks = [new_network(name, initial, pack, config.input_size) for name in names]  # what cannot be had fails here, in one line
    index = [entry for name in names for entry in _train(name, config, folder, pack, executor, resources)]
    stage.folder.write(CHECKPOINTS, to_json({"checkpoints": index}))
    last = [entry["metrics"] for entry in index[config.surrogate.epochs - 1 :: config.surrogate.epochs]]
    counts = {
        "networks": list(names),
        "parameters": [sum(p.numel() for p in network.parameters()) for network in networks],
        "epochs": config.surrogate.epochs,
        "workers": resources.workers,
        "precision": list(dict.fromkeys(entry["precision"] for entry in index)),  # one, but for a training resumed on other hardware
        "final_loss": [metrics["loss"] for metrics in last],
        "final_accuracy": [metrics["accuracy"] for metrics in last],
        "weights_sha256": weights_digest(index),
    }
    if initial:
        counts["initial"] = {"name": initial.name, "size": initial.size, "resizes": resizes(networks[0])}
    return stage.finish(counts)


def _section(config: RunConfig, folder: Folder, pack: Manifest) -> dict[str, Any]:
    """Return what the stage records of the configuration: of the memory limit, whether images stream, which makes other batches.

    An earlier version did not record that. What it made with otherwise the same settings stays as it was.
    """
    section = recorded_training(config.surrogate) | recorded_views(config) | recorded_input(config.input_size)
    with suppress(FileNotFoundError, ValueError):  # not started, or damaged, which the stage itself says
        if read_started(folder, "surrogate").get("surrogate") == section:
            return section
    streams = not fits(pack.shards["train"], image_bytes(pack.counts), config.memory_limit_mb)
    return section | {"beyond_memory_limit_mb": streams}


def _train(name: str, config: RunConfig, folder: Folder, pack: Manifest, executor: Executor, resources: Resources) -> list[dict[str, Any]]:
    """Train one network and return the index's entry of every epoch; several networks have a folder each."""
    alone = len(config.surrogate.trained) == 1
    own = folder.child("surrogate")
    cpus = resources.cpus_for(resources.workers)
    with Epochs(f"surrogate: {name}", {name: config.surrogate.epochs}) as progress:
        rows = executor.train(
            loop,
            SurrogateTask(
                name=name,
                config=config.surrogate,
                seed=config.seed,
                clean=folder.child("pack"),
                pack=pack,
                memory_limit_mb=config.memory_limit_mb,
                threads=cpus,
                cache_gb=config.cache_gb,
                views=config.views,
                input_size=config.input_size,
            ),
            what=name,
            folder=own if alone else own.child(name),
            workers=resources.workers,
            cpus=cpus,
            gpu=resources.gpu,
            on_epoch=partial(_reached, progress, name),
        )
    last = rows[-1]["loss"], rows[-1]["accuracy"], waiting_percent(rows)
    log.info("surrogate: %s, loss %.3f, training accuracy %.1f %%, %.0f %% of the time waiting for images", name, *last)
    assert [row["epoch"] for row in rows] == list(range(config.surrogate.epochs))
    return [
        {
            "network": name,
            "epoch": row["epoch"],
            "file": f"{'' if alone else f'{name}/'}epoch_{row['epoch']:04d}/{WEIGHTS}",
            "sha256": row["sha256"],
            "precision": row["precision"],
            "metrics": {metric: row[metric] for metric in METRICS if metric in row},
        }
        for row in rows
    ]


def _reached(progress: Epochs, name: str, row: dict[str, Any]) -> None:
    note = f"loss {row['loss']:.3f}, training accuracy {row['accuracy']:.1f} %, {row['seconds']:.1f} s an epoch"
    progress.reached(name, row["epoch"] + 1, note)
