"""Stage 2: clean shards become one checkpoint per epoch of a network, or of several that are trained one after the other.

Every epoch's weights are kept, on a fixed grid; no test image is looked at.
"""

from __future__ import annotations

import io
import logging
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cluster import session, training
from pipeline.batches import Split, open_batches
from pipeline.config.class_selection import protected_classes
from pipeline.config.schema import RunConfig, SurrogateConfig, to_tree
from pipeline.config.seeds import derive, generator
from pipeline.ensemble import INDEX, weights_digest
from pipeline.networks import build_network
from pipeline.storage.folder import Folder
from pipeline.storage.records import sha256, to_json
from pipeline.storage.stage import Manifest, Stage
from sep.execution import use_cpu
from sep.fitting import optimiser, train_epoch

log = logging.getLogger(__name__)

WEIGHTS = "weights.pt"
STATE = "training.pt"


@dataclass(frozen=True)
class Task:
    """What every rank is told."""

    name: str  # of the network
    config: SurrogateConfig
    seed: int
    clean: Folder
    pack: Manifest
    memory_limit_mb: int
    threads: int


def loop(task: Task, worker: training.Worker) -> None:
    """The training loop of one rank."""
    use_cpu(task.threads)
    config, counts = task.config, task.pack.counts
    torch.manual_seed(derive(task.seed, "surrogate"))
    network: nn.Module = build_network(task.name, task.pack).to(memory_format=torch.channels_last)
    if worker.size > 1 and worker.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    distributed = worker.distribute(network)
    split = Split(max(1, config.batch_size // worker.size), derive(task.seed, "surrogate"), worker.rank, worker.size)
    image_bytes = 3 * counts["height"] * counts["width"]
    batches = open_batches(task.clean, task.pack.shards["train"], image_bytes, task.memory_limit_mb, split, worker.device)
    sgd, scheduler = optimiser(distributed, config, batches.steps)

    first = 0
    with worker.resumed() as kept:
        if kept is not None:
            network.load_state_dict(torch.load(kept / WEIGHTS, map_location=worker.device, weights_only=True))
            state = torch.load(kept / STATE, map_location=worker.device, weights_only=True)
            sgd.load_state_dict(state["optimizer"])
            first = state["epoch"] + 1
            scheduler.last_epoch = first * batches.steps  # computed, because another number of ranks makes other steps
    for epoch in range(first, config.epochs):
        begun = time.monotonic()
        torch.manual_seed(derive(task.seed, "dropout", epoch, worker.rank))  # where a network has it
        draws = generator(task.seed, "augment", epoch, worker.rank)
        result = train_epoch(distributed, sgd, scheduler, batches.epoch(epoch), config.augmentation, draws)
        loss, accuracy = _mean_over_ranks(torch.tensor([result.loss, result.accuracy], device=worker.device), worker.size)
        if not (result.finite and math.isfinite(loss)):  # on this rank, or any other
            raise ValueError(f"training diverged in epoch {epoch + 1} (loss {loss}): lower --surrogate.lr, and run again with --overwrite")
        metrics = {"loss": loss, "accuracy": accuracy, "lr": sgd.param_groups[0]["lr"], "seconds": time.monotonic() - begun}
        files = {}
        if worker.rank == 0:
            state = {"epoch": epoch, "optimizer": sgd.state_dict()}
            files = {WEIGHTS: _to_bytes(network.state_dict()), STATE: _to_bytes(state)}
            metrics["sha256"] = sha256(files[WEIGHTS])
        worker.report(epoch, metrics, files)


def _mean_over_ranks(values: Tensor, size: int) -> list[float]:
    if size > 1:
        torch.distributed.all_reduce(values)
    return (values / size).tolist()


def _to_bytes(state: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


def run(config: RunConfig, folder: Folder) -> Manifest:
    """Train the surrogate's networks, or go on with them.

    Raises:
        ValueError: the pack stage has not finished, was done with another configuration, or lacks a class that is to be protected.
        TrainingFailed: training broke off for good.
    """
    section = to_tree(config.surrogate)
    stage = Stage(folder, "surrogate", section, seed=config.seed, inputs=("pack",), overwrite=config.overwrite)
    if stage.manifest:
        return stage.manifest
    pack = Manifest.load(folder, "pack")
    if "protect" in config.stages:  # now, and not after hours of training
        protected_classes(config, pack.counts["classes"])
    resources = session.connect(config.workers)
    names = config.surrogate.networks
    index = [entry for name in names for entry in _train(name, config, folder, pack, resources)]
    stage.folder.write(INDEX, to_json({"checkpoints": index}))
    last = [entry["metrics"] for entry in index[config.surrogate.epochs - 1 :: config.surrogate.epochs]]
    counts = {
        "networks": list(names),
        "parameters": [sum(p.numel() for p in build_network(name, pack).parameters()) for name in names],
        "epochs": config.surrogate.epochs,
        "workers": resources.workers,
        "final_loss": [metrics["loss"] for metrics in last],
        "final_accuracy": [metrics["accuracy"] for metrics in last],
        "weights_sha256": weights_digest(index),
    }
    return stage.finish(counts)


def _train(name: str, config: RunConfig, folder: Folder, pack: Manifest, resources: session.Resources) -> list[dict[str, Any]]:
    """Every epoch of one network, as the index lists it; among several networks each has a folder of its own."""
    alone = len(config.surrogate.networks) == 1
    cpus = resources.cpus_for(resources.workers)
    rows = training.train(
        loop,
        Task(name, config.surrogate, config.seed, folder.child("pack"), pack, config.memory_limit_mb, cpus),
        workers=resources.workers,
        cpus=cpus,
        gpu=resources.gpu,
        filesystem=folder.filesystem,
        folder=folder.path if alone else folder.child("surrogate").path,
        name="surrogate" if alone else name,
        on_epoch=lambda row: log.info(
            "surrogate: %s, epoch %d of %d, loss %.3f, training accuracy %.1f %%, %.1f s",
            name,
            row["epoch"] + 1,
            config.surrogate.epochs,
            row["loss"],
            row["accuracy"],
            row["seconds"],
        ),
    )
    assert [row["epoch"] for row in rows] == list(range(config.surrogate.epochs))
    return [
        {
            "network": name,
            "epoch": row["epoch"],
            "file": f"{'' if alone else f'{name}/'}epoch_{row['epoch']:04d}/{WEIGHTS}",
            "sha256": row["sha256"],
            "metrics": {metric: row[metric] for metric in ("loss", "accuracy", "lr", "seconds")},
        }
        for row in rows
    ]
