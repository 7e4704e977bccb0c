"""One rank's training of a surrogate: every epoch's weights are saved, and no test image is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cluster.epochs import Worker
from pipeline.config.schema import SurrogateConfig
from pipeline.config.seeds import derive, generator
from pipeline.shards.sizes import image_bytes
from pipeline.shards.tensors import Batch, Loading
from pipeline.storage.folder import Folder
from pipeline.storage.layout import RESUME, WEIGHTS
from pipeline.storage.records import sha256
from pipeline.storage.stage import Manifest
from pipeline.training.batches import Split, open_batches
from pipeline.training.initial import new_network
from pipeline.training.states import to_bytes
from sep.execution import use_cpu
from sep.fitting import EpochResult, State, fit
from sep.pictures import Images
from sep.views.mix import each_its_own
from sep.views.own_size import training_view
from sep.views.registry import PLAIN

REMEDY = "lower --surrogate.lr, and run again with --overwrite"


@dataclass(frozen=True, kw_only=True)
class SurrogateTask:
    """The work of every rank."""

    name: str  # of the network
    config: SurrogateConfig
    seed: int
    clean: Folder
    pack: Manifest
    memory_limit_mb: int
    threads: int
    cache_gb: float
    views: tuple[str, ...] = PLAIN
    input_size: int | None = None


def loop(task: SurrogateTask, worker: Worker) -> None:
    """Train the network as one rank, from the last saved epoch on.

    Raises:
        ValueError: training diverged, the images do not fill one batch on every rank, or pretrained weights cannot be had.
    """
    use_cpu(task.threads)
    config, side, seed = task.config, task.input_size, derive(task.seed, "surrogate")
    torch.manual_seed(seed)
    network: nn.Module = new_network(task.name, config.pretrained, task.pack, side).to(memory_format=torch.channels_last)
    if worker.size > 1 and worker.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    distributed = worker.distribute(network)
    split = Split(max(1, config.batch_size // worker.size), seed, worker.rank, worker.size)
    loading = Loading(task.threads, cache_gb=task.cache_gb, input_size=side)

    def sight(epoch: int) -> Callable[[Images], Tensor]:
        mixing, windows = (generator(task.seed, purpose, epoch, worker.rank) for purpose in ("views", "windows"))

        def seen(images: Images) -> Tensor:
            viewed = each_its_own(images, task.views, mixing)
            return training_view(viewed, side, config.augmentation, windows, task.threads)

        return seen

    shards, each = task.pack.shards["train"], image_bytes(task.pack.counts)
    batches = open_batches(task.clean, shards, each, task.memory_limit_mb, split, worker.device, loading=loading, sight=sight)

    def opened(epoch: int) -> Iterator[Batch]:
        torch.manual_seed(derive(task.seed, "dropout", epoch, worker.rank))  # for networks that have it
        return batches.epoch(epoch)

    def draws(epoch: int) -> torch.Generator:
        return generator(task.seed, "augment", epoch, worker.rank)

    with worker.resumed() as kept:
        state = _read(kept) if kept else None
    average = partial(_mean_over_ranks, device=worker.device, size=worker.size)
    training = replace(config, augmentation="none") if side else config  # their windows are augmentation
    for epoch in fit(distributed, training, opened, batches.steps, draws, state=state, average=average, remedy=REMEDY):
        result = epoch.result
        metrics: dict[str, Any] = {"loss": result.loss, "accuracy": result.accuracy, "lr": epoch.lr, "seconds": epoch.seconds}
        metrics |= {"waiting_seconds": epoch.waiting_seconds, "precision": epoch.precision}
        files = {}
        if worker.rank == 0:
            state = epoch.state()
            files = {WEIGHTS: to_bytes(state.pop("network")), RESUME: to_bytes(state)}
            metrics["sha256"] = sha256(files[WEIGHTS])
        worker.report(epoch.index, metrics, files)


def _read(folder: Path) -> State:
    weights, state = (torch.load(folder / name, map_location="cpu", weights_only=True) for name in (WEIGHTS, RESUME))
    return {**state, "network": weights}


def _mean_over_ranks(result: EpochResult, *, device: torch.device, size: int) -> EpochResult:
    """Return the same result on all ranks, so that all of them stop where one has diverged."""
    values = torch.tensor([result.loss, result.accuracy, float(result.finite)], device=device)
    if size > 1:
        torch.distributed.all_reduce(values)
    loss, accuracy, finite = (values / size).tolist()
    return EpochResult(loss, accuracy, finite == 1)
