"""One victim: trained on clean or protected images under a countermeasure, tested on clean ones.

Legend: B images, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from cluster import sweep
from pipeline.config.schema import VictimConfig
from pipeline.config.seeds import derive, generator
from pipeline.shards.shard import read_shard
from pipeline.shards.tensors import Read
from pipeline.storage.layout import trial_name
from pipeline.storage.run import Run
from pipeline.storage.stage import Manifest
from pipeline.training import trial_records
from pipeline.training.batches import Batches, Split, Transform, open_batches, open_tests, unchanged
from pipeline.training.clean_shares import Diluted, Repeated, clean_keys, protected_labels
from pipeline.training.networks import build_network
from sep.countermeasures import registry as countermeasures
from sep.countermeasures.registry import Data
from sep.execution import share_memory, use_cpu
from sep.fitting import accuracy, confusion, optimiser, train_epoch


@dataclass(frozen=True)
class Trial:
    """One trial of the matrix."""

    network: str
    data: Data
    countermeasure: str
    seed: int

    @property
    def name(self) -> str:
        """Of the trial and its file."""
        return trial_name(self.network, self.data, self.countermeasure, self.seed)

    @property
    def trained(self) -> Trial:
        """The cell that says how this one is trained: clean images are not diluted, and clean images alone are not protected."""
        name, data = countermeasures.trained_as(self.countermeasure, self.data)
        return replace(self, countermeasure=name, data=data)


@dataclass(frozen=True)
class VictimTask:
    """What one trial is told."""

    cell: Trial
    config: VictimConfig
    run_seed: int
    run: Run
    pack: Manifest
    protected: tuple[int, ...]  # labels of the protected classes
    train: Manifest  # of the stage whose shards are trained on
    made_from: str
    memory_limit_mb: int
    threads: int
    gpu: bool


def relabelled_accuracy(table: NDArray[np.int64]) -> float:
    """Percent correct after the best one-to-one renaming of the predicted classes.

    Args:
        table: confusion counts `(rows, K)`, rows are the true classes that are looked at.
    """
    truth, predicted = linear_sum_assignment(table, maximize=True)
    return 100 * float(table[truth, predicted].sum()) / float(table.sum())


def accuracy_per_class(table: Tensor) -> list[float | None]:
    """Percent correct of each true class of a confusion table `(K, K)`; None where there are no test images of it."""
    return [accuracy(table, [label]) if int(count) else None for label, count in enumerate(table.sum(1))]


def _training_images(task: VictimTask, seed: int, device: torch.device) -> Batches:
    """Batches of what the countermeasure leaves of the images; those that it learns from first are read as often as it needs."""
    cell, counts = task.cell.trained, task.pack.counts
    plan, shards, read = countermeasures.plan(cell.countermeasure), task.train.shards["train"], cast(Read, read_shard)
    if plan.clean_percent:
        pack, packed = task.run.child("pack"), task.pack.shards["train"]
        labels = protected_labels(pack, shards, task.protected)
        keys = clean_keys(labels, plan.clean_percent, task.run_seed, cell.seed)
        read = Repeated.of(pack, packed, labels, keys) if plan.clean_only else Diluted(pack, packed, keys)
    folder, split = task.run.child(task.train.stage), Split(task.config.batch_size, seed)
    image_bytes = 3 * counts["height"] * counts["width"] * bytes_per_value(plan)
    opened = partial(open_batches, folder, shards, image_bytes, task.memory_limit_mb, split, device, read=read)
    transform: Transform = unchanged
    for part in plan.on_images:
        step = part.fitted(opened(transform).epoch, len(counts["classes"])) if part.fitted else part.on_stored
        transform = partial(_one_after_the_other, transform, step)
    return opened(transform)


def bytes_per_value(plan: countermeasures.Plan) -> int:
    """Return the bytes that one stored value takes in memory: four where the countermeasure projects, else one."""
    return 4 if any(part.fitted for part in plan.on_images) else 1


def _one_after_the_other(first: Transform, second: Transform, images: Tensor) -> Tensor:
    return second(first(images))


def trial(task: VictimTask, report: sweep.Report) -> None:
    """Train one victim and keep its result as `victim/<cell>.json`.

    Raises:
        ValueError: training diverged.
    """
    use_cpu(task.threads)
    torch.backends.cudnn.deterministic = True
    cell, counts = task.cell, task.pack.counts
    plan, classes = countermeasures.plan(cell.countermeasure), len(counts["classes"])
    config, change = plan.training(task.config), plan.change(classes)
    device = torch.device("cuda" if task.gpu else "cpu")
    share_memory(device, task.config.trials_per_gpu)
    # Clean and protected victims of one seed start from the same weights and see their images in the same order.
    seed = derive(task.run_seed, "victim", cell.network, cell.seed)
    torch.manual_seed(seed)
    network = build_network(cell.network, task.pack).to(device).to(memory_format=torch.channels_last)
    batches = _training_images(task, seed, device)
    image_bytes = 3 * counts["height"] * counts["width"]
    tests = open_tests(task.run.child("pack"), task.pack.shards["test"], image_bytes, task.memory_limit_mb)
    sgd, scheduler = optimiser(network, config, batches.steps)
    protected = list(task.protected)
    others = sorted(set(range(classes)) - set(protected))
    accuracies, losses = [], []
    for epoch in range(config.epochs):
        draws = generator(seed, "augment", epoch)
        result = train_epoch(network, sgd, scheduler, batches.epoch(epoch), config.augmentation, draws, change=change)
        if not result.finite:  # or it would count as one that learned nothing from protected images
            raise ValueError(f"training diverged in epoch {epoch + 1} (loss {result.loss}): lower --victim.lr")
        table = confusion(network, tests(), classes)
        accuracies.append(accuracy(table, protected))
        losses.append(result.loss)
        report({"epoch": epoch, "test_accuracy": accuracies[-1], "train_loss": losses[-1]})
    outcome = {
        "network": cell.network,
        "data": cell.data,
        "countermeasure": cell.countermeasure,
        "seed": cell.seed,
        "last_accuracy": accuracies[-1],
        "peak_accuracy": max(accuracies),
        "relabelled_accuracy": relabelled_accuracy(table[protected].numpy()),
        "other_accuracy": accuracy(table, others) if others else None,
        "accuracy_per_class": accuracy_per_class(table),
        "accuracy_per_epoch": accuracies,
        "loss_per_epoch": losses,
        "confusion": table.tolist(),
        "made_from": task.made_from,
    }
    trial_records.write(task.run.child("victim"), cell.name, outcome)
