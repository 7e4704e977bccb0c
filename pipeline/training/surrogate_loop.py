"""One rank's training of a surrogate: every epoch's weights are saved, and no test image is read."""

from __future__ import annotations

import io
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cluster.epochs import Worker
from pipeline.config.schema import SurrogateConfig
from pipeline.config.seeds import derive, generator
from pipeline.storage.folder import Folder
from pipeline.storage.layout import RESUME, WEIGHTS
from pipeline.storage.records import sha256
from pipeline.storage.stage import Manifest
from pipeline.training.batches import Split, open_batches
from pipeline.training.networks import build_network
from sep.execution import use_cpu
from sep.fitting import optimiser, train_epoch


@dataclass(frozen=True)
class SurrogateTask:
    """What every rank is told."""

    name: str  # of the network
    config: SurrogateConfig
    seed: int
    clean: Folder
    pack: Manifest
    memory_limit_mb: int
    threads: int


def loop(task: SurrogateTask, worker: Worker) -> None:
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
            state = torch.load(kept / RESUME, map_location=worker.device, weights_only=True)
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
            files = {WEIGHTS: _to_bytes(network.state_dict()), RESUME: _to_bytes(state)}
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
