"""One victim: an unauthorised trainer's network, trained on clean or protected images and tested on clean ones.

Legend: B images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from cluster.deadline import NEVER, Deadline, TimeIsUp
from cluster.work import Report
from pipeline.config.schema import VictimConfig
from pipeline.config.seeds import derive, generator
from pipeline.shards.shard import read_shard
from pipeline.shards.sizes import image_bytes
from pipeline.shards.tensors import Loading, Read
from pipeline.storage.layout import trial_name
from pipeline.storage.run import Run
from pipeline.storage.stage import Manifest
from pipeline.training import trial_records
from pipeline.training.batches import Batches, Split, Transform, open_batches, open_tests, unchanged, whole
from pipeline.training.clean_shares import Diluted, Repeated, clean_keys, protected_labels
from pipeline.training.networks import build_network
from pipeline.training.states import StateFile
from sep.countermeasures import registry as countermeasures
from sep.countermeasures.registry import Data, Plan
from sep.execution import share_memory, use_cpu
from sep.fitting import Epoch, State, accuracy, fit
from sep.pictures import Images
from sep.train_config import Augmentation, TrainConfig
from sep.views.own_size import fitted_at_input_size, training_view, whole_view


@dataclass(frozen=True)
class Trial:
    """One combination of network, data, countermeasure and seed."""

    network: str
    data: Data
    countermeasure: str
    seed: int

    @property
    def name(self) -> str:
        """The name of the trial and its files."""
        return trial_name(self.network, self.data, self.countermeasure, self.seed)

    @property
    def trained(self) -> Trial:
        """The trial whose training gives this one's result too: clean images cannot be diluted, and a clean-only share is not protected."""
        name, data = countermeasures.trained_as(self.countermeasure, self.data)
        return replace(self, countermeasure=name, data=data)


@dataclass(frozen=True, kw_only=True)
class VictimTask:
    """The inputs of one trial's training."""

    trial: Trial
    plan: Plan  # the countermeasures of `trial.trained`
    config: VictimConfig
    run_seed: int
    run: Run
    pack: Manifest
    protected: tuple[int, ...]  # labels of the protected classes
    train: Manifest  # of the stage whose shards are trained on
    made_from: str
    memory_limit_mb: int
    threads: int
    cache_gb: float
    gpu: bool
    input_size: int | None = None
    deadline: Deadline = NEVER


def relabelled_accuracy(table: NDArray[np.int64]) -> float:
    """Return the percentage correct after the best one-to-one renaming of the predicted classes.

    Args:
        table: confusion counts `(rows, K)`, a row for each true class to look at.
    """
    truth, predicted = linear_sum_assignment(table, maximize=True)
    return 100 * float(table[truth, predicted].sum()) / float(table.sum())


def accuracy_per_class(table: Tensor) -> list[float | None]:
    """Return the percentage correct of each true class of a confusion table `(K, K)`; None for a class without test images."""
    return [accuracy(table, [label]) if int(count) else None for label, count in enumerate(table.sum(1))]


def _training_images(task: VictimTask, seed: int, device: torch.device, augmentation: Augmentation = "none") -> Batches:
    """Open batches of the images as they were stored and after the countermeasures, of which a fitted one reads them first."""
    trial, plan, counts, side = task.trial, task.plan, task.pack.counts, task.input_size
    shards, read = task.train.shards["train"], cast(Read, read_shard)
    if plan.clean_percent:
        pack, packed = task.run.child("pack"), task.pack.shards["train"]
        labels = protected_labels(pack, shards, task.protected)
        keys = clean_keys(labels, plan.clean_percent, task.run_seed, trial.seed)
        read = Repeated.of(pack, packed, labels, keys) if plan.clean_only else Diluted(pack, packed, keys)
    folder, split = task.run.child(task.train.stage), Split(task.config.batch_size, seed)
    each = image_bytes(counts) * bytes_per_value(plan)
    opened = partial(open_batches, folder, shards, each, task.memory_limit_mb, split, device, read=read, loading=_loading(task))
    transform: Transform = unchanged
    for part in (*countermeasures.stored_as(task.config.stored), *plan.on_images):
        step: Transform = partial(_whatever_class, part.on_stored)
        if part.fitted:
            seen = whole if side is None else partial(_as_a_whole, side)
            step = part.fitted(opened(transform, sight=seen).epoch, len(counts["classes"]))
            step = step if side is None else fitted_at_input_size(step, side)
        transform = partial(_one_after_the_other, transform, step)

    def sight(epoch: int) -> Callable[[Images], Tensor]:
        return partial(training_view, side=side, augmentation=augmentation, generator=generator(seed, "windows", epoch))

    return opened(transform, sight=sight)


def _loading(task: VictimTask) -> Loading:
    return Loading(task.threads, cache_gb=task.cache_gb, input_size=task.input_size)


def bytes_per_value(plan: Plan) -> int:
    """Return the bytes that one stored value takes in memory: four where the countermeasure projects, else one."""
    return 4 if any(part.fitted for part in plan.on_images) else 1


def _as_a_whole(side: int, _: int) -> Callable[[Images], Tensor]:
    return partial(whole_view, side=side)


def _one_after_the_other(first: Transform, second: Transform, images: Tensor, labels: Tensor) -> Tensor:
    return second(first(images, labels), labels)


def _whatever_class(change: Callable[[Tensor], Tensor], images: Tensor, _: Tensor) -> Tensor:
    return change(images)


def train_victim(task: VictimTask, report: Report) -> None:
    """Train one victim and write its outcome as `victim/<trial>.json`.

    An interrupted start leaves its state as `victim/<trial>.pt`. The next start resumes from it and reaches the same outcome.

    Raises:
        ValueError: training diverged.
        TimeIsUp: the deadline has passed with epochs left for the next start.
    """
    use_cpu(task.threads)
    folder, config, protected = task.run.child("victim"), task.plan.training(task.config), list(task.protected)
    file = StateFile(folder, task.trial.name, task.made_from)
    state = file.read()
    accuracies, losses = (state["accuracies"], state["losses"]) if state else ([], [])
    seconds, waiting = (state["seconds"], state.get("waiting_seconds", 0.0)) if state else (0.0, 0.0)
    for epoch in _epochs(task, config, state):
        assert epoch.table is not None
        accuracies.append(accuracy(epoch.table, protected))
        losses.append(epoch.result.loss)
        seconds, waiting = seconds + epoch.seconds, waiting + epoch.waiting_seconds
        shares = {"seconds": epoch.seconds, "loader_percent": 100 * epoch.waiting_seconds / epoch.seconds}
        report({"epoch": epoch.index, "test_accuracy": accuracies[-1], "train_loss": losses[-1], **shares})
        if epoch.index + 1 < config.epochs:
            late = task.deadline.passed()
            if late or file.due:
                times = {"seconds": seconds, "waiting_seconds": waiting}
                file.write({**epoch.state(), "accuracies": accuracies, "losses": losses, **times})
            if late:
                raise TimeIsUp
    curves = {"accuracy_per_epoch": accuracies, "loss_per_epoch": losses, "seconds": seconds, "waiting_seconds": waiting}
    trial_records.write(folder, task.trial.name, {**_outcome(task, epoch), **curves, "peak_accuracy": max(accuracies)})
    file.remove()


def _epochs(task: VictimTask, config: TrainConfig, state: State | None) -> Iterator[Epoch]:
    """Open the training, with a test after each epoch.

    Clean and protected victims of one seed start from the same weights and see their images in the same order.
    """
    trial, counts = task.trial, task.pack.counts
    classes, side, shards = len(counts["classes"]), task.input_size, task.pack.shards["test"]
    device = torch.device("cuda" if task.gpu else "cpu")
    share_memory(device, task.config.trials_per_gpu)
    seed = derive(task.run_seed, "victim", trial.network, trial.seed)
    torch.manual_seed(seed)
    network = build_network(trial.network, task.pack, side).to(device).to(memory_format=torch.channels_last)
    batches = _training_images(task, seed, device, config.augmentation)
    return fit(
        network,
        replace(config, augmentation="none") if side else config,  # their windows are augmentation
        batches.epoch,
        batches.steps,
        draws=partial(generator, seed, "augment"),
        state=state,
        tests=open_tests(task.run.child("pack"), shards, image_bytes(counts), task.memory_limit_mb, device, _loading(task)),
        num_classes=classes,
        change=task.plan.change(classes),
        remedy="lower --victim.lr",
    )


def _outcome(task: VictimTask, last: Epoch) -> dict[str, Any]:
    """Return the trial and its figures after the last epoch. The caller adds the curves over all epochs."""
    assert last.table is not None
    table, protected = last.table, list(task.protected)
    others = sorted(set(range(len(table))) - set(protected))
    return {
        **asdict(task.trial),
        "stored": task.config.stored,
        "last_accuracy": accuracy(table, protected),
        "relabelled_accuracy": relabelled_accuracy(table[protected].numpy()),
        "other_accuracy": accuracy(table, others) if others else None,
        "accuracy_per_class": accuracy_per_class(table),
        "confusion": table.tolist(),
        "precision": last.precision,
        "made_from": task.made_from,
    }
