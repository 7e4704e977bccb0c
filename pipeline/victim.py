"""Stage 4: what a stranger would get, one trial per network, countermeasure, seed, and clean or protected data.

Victims train from the stored, decoded images and are measured on clean test images. Because a fixed label shift can be
undone by whoever guesses it, accuracy after the best one-to-one relabelling of the predictions stands beside the plain one.
Accuracies are those on the test images of the protected classes; where not all classes are, one on the others stands beside them.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import product
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from cluster import session, sweep
from cluster.pool import WorkFailed
from pipeline import outcomes
from pipeline.batches import Batches, Split, Transform, fits, open_batches, open_tests, unchanged
from pipeline.config.schema import RunConfig, VictimConfig, to_tree
from pipeline.config.seeds import derive, generator
from pipeline.dilution import Diluted, Repeated, clean_keys, protected_labels
from pipeline.networks import build_network
from pipeline.shards.shard import read_shard
from pipeline.shards.tables import rows_to_table, write_table
from pipeline.shards.tensors import Read
from pipeline.storage.folder import Folder
from pipeline.storage.layout import UNFINISHED, relatives, trial_name
from pipeline.storage.records import digest, shown
from pipeline.storage.stage import Manifest, Stage
from sep.countermeasures import registry as countermeasures
from sep.countermeasures.registry import Data
from sep.execution import share_memory, use_cpu
from sep.fitting import TrainConfig, accuracy, confusion, optimiser, train_epoch

log = logging.getLogger(__name__)

RESULTS = "results.parquet"
MAY_CHANGE = ("trials_per_gpu",)  # between two starts: it decides how fast, not what
SCHEMA = pa.schema(
    [
        ("network", pa.string()),
        ("data", pa.string()),
        ("countermeasure", pa.string()),
        ("seed", pa.int64()),
        ("last_accuracy", pa.float64()),
        ("peak_accuracy", pa.float64()),
        ("relabelled_accuracy", pa.float64()),
        ("other_accuracy", pa.float64()),
        ("accuracy_per_class", pa.list_(pa.float64())),
        ("accuracy_per_epoch", pa.list_(pa.float64())),
        ("loss_per_epoch", pa.list_(pa.float64())),
    ]
)


@dataclass(frozen=True)
class Cell:
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
    def trained(self) -> Cell:
        """The cell that says how this one is trained: clean images are not diluted, and clean images alone are not protected."""
        name, data = countermeasures.trained_as(self.countermeasure, self.data)
        return replace(self, countermeasure=name, data=data)


@dataclass(frozen=True)
class Task:
    """What one trial is told."""

    cell: Cell
    config: VictimConfig
    run_seed: int
    run: Folder
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


def _training_images(task: Task, seed: int, device: torch.device) -> Batches:
    """Batches of what the countermeasure leaves of the images; those that it learns from first are read as often as it needs."""
    cell, counts = task.cell.trained, task.pack.counts
    plan, shards, read = countermeasures.plan(cell.countermeasure), task.train.shards["train"], cast(Read, read_shard)
    if plan.clean_percent:
        pack, packed = task.run.child("pack"), task.pack.shards["train"]
        labels = protected_labels(pack, shards, task.protected)
        keys = clean_keys(labels, plan.clean_percent, task.run_seed, cell.seed)
        read = Repeated.of(pack, packed, labels, keys) if plan.clean_only else Diluted(pack, packed, keys)
    folder, split = task.run.child(task.train.stage), Split(task.config.batch_size, seed)
    image_bytes = 3 * counts["height"] * counts["width"] * _bytes_of_a_level(plan)
    opened = partial(open_batches, folder, shards, image_bytes, task.memory_limit_mb, split, device, read=read)
    transform: Transform = unchanged
    for part in plan.on_images:
        step = part.fitted(opened(transform).epoch, len(counts["classes"])) if part.fitted else part.on_stored
        transform = partial(_one_after_the_other, transform, step)
    return opened(transform)


def _bytes_of_a_level(plan: countermeasures.Plan) -> int:
    return 4 if any(part.fitted for part in plan.on_images) else 1  # what is projected is float32


def _one_after_the_other(first: Transform, second: Transform, images: Tensor) -> Tensor:
    return second(first(images))


def trial(task: Task, report: sweep.Report) -> None:
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
    outcomes.write(task.run.child("victim"), cell.name, outcome)


def _outcome(folder: Folder, task: Task) -> dict[str, Any] | None:
    """The result of a finished trial that was made from the same."""
    return outcomes.read(folder, task.cell.name, task.made_from)


def _rows(folder: Folder, tasks: Collection[Task]) -> list[dict[str, Any]]:
    """As in `results.parquet`, of the trials that have finished."""
    # What earlier versions left has the table and not the accuracy of each class.
    there = (outcome for task in tasks if (outcome := _outcome(folder, task)) is not None)
    of_classes = ({**outcome, "accuracy_per_class": accuracy_per_class(torch.tensor(outcome["confusion"]))} for outcome in there)
    return [{name: outcome[name] for name in SCHEMA.names} for outcome in of_classes]


def _trained_elsewhere(tasks: Collection[Task], folder: Folder) -> None:
    """Take over what other points of the same sweep have trained: of them all, clean victims are the same."""
    others = [other.child("victim") for other in relatives(folder)]
    for task in tasks:
        if others and task.cell.data == "clean" and _outcome(folder.child("victim"), task) is None:
            outcome = next((found for other in others if (found := _outcome(other, task)) is not None), None)
            if outcome is not None:
                outcomes.write(folder.child("victim"), task.cell.name, outcome)


def run(config: RunConfig, folder: Folder) -> Manifest:
    """Train the victims that are not trained yet: with `--overwrite`, also those that a changed configuration asks for anew.

    Outcomes that are not asked for stay where they are: each knows what it was made from, and may be asked for again.

    Raises:
        ValueError: an earlier stage has not finished, there are no test images, or the stage was done with another
            configuration.
        WorkFailed: trials failed, after all others were finished.
    """
    victim, inputs = config.victim, ("pack", "protect")
    section = {name: value for name, value in to_tree(victim).items() if name not in MAY_CHANGE}
    stage = Stage(folder, "victim", section, seed=config.seed, inputs=inputs, overwrite=config.overwrite, pieces_know=True)
    if stage.manifest:
        return stage.manifest
    pack, protect = Manifest.load(folder, "pack"), Manifest.load(folder, "protect")
    if not pack.shards["test"]:
        raise ValueError("victims are measured on test images, and the packed data has none: pack with --pack.test-fraction 0.1")
    resources = session.connect(config.workers)
    kinds: tuple[Data, Data] = ("clean", "protected")
    cells = [Cell(n, d, c, s) for n, c, s, d in product(victim.networks, victim.countermeasures, victim.seeds, kinds)]
    each = victim.trials_per_gpu if resources.gpu else 1
    at_once = min(len(cells), resources.tasks * each)  # not of those missing: a trial that is done again gets as many threads as before
    tasks = {cell.name: _task(cell, config, folder, pack, protect, resources, at_once) for cell in cells}
    _trained_elsewhere(tasks.values(), folder)
    missing = {name: task for name, task in tasks.items() if _outcome(stage.folder, task) is None}
    twins = {cell.trained: tasks[cell.name] for cell in reversed(cells)}  # the first of those that are trained alike
    trained = {name: task for name, task in missing.items() if twins[task.cell.trained] is task}
    if missing and len(missing) < len(tasks):
        log.info("victim: %d of %d trials are there already; left: %s", len(tasks) - len(missing), len(tasks), shown([*missing]))
    failed = None
    if trained:
        cpus = resources.cpus_for(at_once, each)
        try:
            sweep.sweep(trial, trained, what=stage.name, at_once=at_once, cpus=cpus, gpu=resources.gpu / each, on_result=_log)
        except WorkFailed as error:
            failed = error
    for name, task in missing.items():
        if name not in trained and (outcome := _outcome(stage.folder, twins[task.cell.trained])) is not None:
            same = {"countermeasure": task.cell.countermeasure, "data": task.cell.data, "made_from": task.made_from}
            outcomes.write(stage.folder, name, {**outcome, **same})
    rows = _rows(stage.folder, tasks.values())
    if failed:  # reports show what there is
        lost = [name for name, task in tasks.items() if _outcome(stage.folder, task) is None]
        stage.folder.write(UNFINISHED, outcomes.encode({"asked": stage.hash, "trials": rows, "missing": lost}))
        raise failed
    assert len(rows) == len(tasks)
    stage.folder.remove(UNFINISHED)
    write_table(stage.folder, RESULTS, rows_to_table(rows, SCHEMA))
    return stage.finish({"trials": len(rows)})


def _task(
    cell: Cell, config: RunConfig, folder: Folder, pack: Manifest, protect: Manifest, resources: session.Resources, at_once: int
) -> Task:
    """A trial's task. Clean victims depend on nothing that was protected, and no victim on which others there are."""
    train = pack if cell.trained.data == "clean" else protect
    protected = tuple(protect.counts["classes"])
    training = {field.name: getattr(config.victim, field.name) for field in fields(TrainConfig)}
    cpus, gpu = resources.cpus_for(at_once, config.victim.trials_per_gpu), bool(resources.gpu)
    plan = countermeasures.plan(cell.trained.countermeasure)
    decides = [cell.__dict__, training, config.seed, pack.digest, train.digest, protected, torch.__version__, gpu]
    decides += [{"revision": plan.revision}] if plan.revision else []
    image_bytes = 3 * pack.counts["height"] * pack.counts["width"] * _bytes_of_a_level(plan)
    decides += [] if fits(train.shards["train"], image_bytes, config.memory_limit_mb) else ["streamed"]
    made_from = digest(decides)
    return Task(cell, config.victim, config.seed, folder, pack, protected, train, made_from, config.memory_limit_mb, cpus, gpu)


def _log(name: str, result: dict[str, Any]) -> None:
    log.info("victim: %s, epoch %d: test accuracy %.1f %%", name, result["epoch"] + 1, result["test_accuracy"])
