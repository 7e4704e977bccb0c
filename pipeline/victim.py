"""Stage 4: what a stranger would get, one trial per network, countermeasure, seed, and clean or protected data.

Victims train from the stored, decoded images and are measured on clean test images. Because a fixed label shift can be
undone by whoever guesses it, accuracy after the best one-to-one relabelling of the predictions stands beside the plain one.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from cluster import session, sweep
from pipeline.batches import Split, open_batches, open_tests
from pipeline.config import RunConfig, VictimConfig, to_tree
from pipeline.networks import build_network
from pipeline.seeding import derive, generator
from pipeline.shards import rows_to_table, write_table
from pipeline.stage import Manifest, Stage, to_json
from pipeline.storage import Folder
from sep.countermeasures import apply
from sep.fitting import accuracy, confusion, optimiser, train_epoch

log = logging.getLogger(__name__)

RESULTS = "results.parquet"
Data = Literal["clean", "protected"]
SCHEMA = pa.schema(
    [
        ("network", pa.string()),
        ("data", pa.string()),
        ("countermeasure", pa.string()),
        ("seed", pa.int64()),
        ("last_accuracy", pa.float64()),
        ("peak_accuracy", pa.float64()),
        ("relabelled_accuracy", pa.float64()),
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
        """File and trial name."""
        return f"{self.network}-{self.data}-{self.countermeasure}-seed{self.seed}"


@dataclass(frozen=True)
class Task:
    """What one trial is told."""

    cell: Cell
    config: VictimConfig
    run_seed: int
    run: Folder
    pack: Manifest
    train: Manifest  # of the stage whose shards are trained on
    stage_hash: str
    memory_limit_mb: int
    threads: int
    gpu: bool


def relabelled_accuracy(table: NDArray[np.int64]) -> float:
    """Percent correct after the best one-to-one renaming of the predicted classes.

    Args:
        table: confusion counts `(K, K)`, rows are the truth.
    """
    truth, predicted = linear_sum_assignment(table, maximize=True)
    return 100 * float(table[truth, predicted].sum()) / float(table.sum())


def trial(task: Task, report: sweep.Report) -> None:
    """Train one victim and keep its result as `victim/<cell>.json`."""
    torch.set_num_threads(task.threads)
    cell, config, counts = task.cell, task.config, task.pack.counts
    device = torch.device("cuda" if task.gpu else "cpu")
    # Clean and protected victims of one seed start from the same weights and see their images in the same order.
    seed = derive(task.run_seed, "victim", cell.network, cell.seed)
    torch.manual_seed(seed)
    network = build_network(cell.network, task.pack).to(device).to(memory_format=torch.channels_last)
    image_bytes = 3 * counts["height"] * counts["width"]
    batches = open_batches(
        task.run.child(task.train.stage),
        task.train.shards["train"],
        image_bytes,
        task.memory_limit_mb,
        Split(config.batch_size, seed),
        device,
        partial(apply, cell.countermeasure),
    )
    tests = open_tests(task.run.child("pack"), task.pack.shards["test"], image_bytes, task.memory_limit_mb)
    sgd, scheduler = optimiser(network, config, batches.steps)
    accuracies, losses = [], []
    for epoch in range(config.epochs):
        result = train_epoch(network, sgd, scheduler, batches.epoch(epoch), config.augmentation, generator(seed, "augment", epoch))
        table = confusion(network, tests(), len(counts["classes"]))
        accuracies.append(accuracy(table))
        losses.append(result.loss)
        report({"epoch": epoch, "test_accuracy": accuracies[-1], "train_loss": losses[-1]})
    outcome = {
        "network": cell.network,
        "data": cell.data,
        "countermeasure": cell.countermeasure,
        "seed": cell.seed,
        "last_accuracy": accuracies[-1],
        "peak_accuracy": max(accuracies),
        "relabelled_accuracy": relabelled_accuracy(table.numpy()),
        "accuracy_per_epoch": accuracies,
        "loss_per_epoch": losses,
        "confusion": table.tolist(),
        "hash": task.stage_hash,
    }
    task.run.child("victim").write(f"{cell.name}.json", to_json(outcome))


def _outcome(folder: Folder, cell: Cell, stage_hash: str) -> dict[str, Any] | None:
    """The result of a finished trial of this very configuration."""
    try:
        outcome: dict[str, Any] = json.loads(folder.read(f"{cell.name}.json"))
    except (FileNotFoundError, ValueError):
        return None
    return outcome if outcome.get("hash") == stage_hash else None


def run(config: RunConfig, folder: Folder) -> Manifest:
    """Train the victims that are not trained yet.

    Raises:
        ValueError: an earlier stage has not finished, there are no test images, or the stage was done with another
            configuration.
        WorkFailed: trials failed, after all others were finished.
    """
    victim = config.victim
    stage = Stage(folder, "victim", to_tree(victim), seed=config.seed, inputs=("pack", "protect"), overwrite=config.overwrite)
    if stage.manifest:
        return stage.manifest
    pack, protect = Manifest.load(folder, "pack"), Manifest.load(folder, "protect")
    if not pack.shards["test"]:
        raise ValueError("victims are measured on test images, and the packed data has none: pack with --pack.test-fraction 0.1")
    resources = session.connect(config.workers)
    kinds: tuple[Data, Data] = ("clean", "protected")
    cells = [Cell(n, d, c, s) for n, c, s, d in product(victim.networks, victim.countermeasures, victim.seeds, kinds)]
    missing = [cell for cell in cells if _outcome(stage.folder, cell, stage.hash) is None]
    if missing:
        at_once = min(len(cells), resources.tasks)  # not of those missing: the threads of a trial can round differently
        cpus = resources.cpus_for(at_once)
        tasks = {
            cell.name: Task(
                cell,
                victim,
                config.seed,
                folder,
                pack,
                pack if cell.data == "clean" else protect,
                stage.hash,
                config.memory_limit_mb,
                cpus,
                bool(resources.gpu),
            )
            for cell in missing
        }
        sweep.sweep(trial, tasks, what=stage.name, at_once=at_once, cpus=cpus, gpu=resources.gpu, on_result=_log)
    outcomes = [_outcome(stage.folder, cell, stage.hash) for cell in cells]
    rows = [{name: outcome[name] for name in SCHEMA.names} for outcome in outcomes if outcome is not None]
    assert len(rows) == len(cells)
    write_table(stage.folder, RESULTS, rows_to_table(rows, SCHEMA))
    return stage.finish({"trials": len(rows)})


def _log(name: str, result: dict[str, Any]) -> None:
    log.info("victim: %s, epoch %d: test accuracy %.1f %%", name, result["epoch"] + 1, result["test_accuracy"])
