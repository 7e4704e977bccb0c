"""Stage 4: what a stranger would get, one trial per network, countermeasure, seed, and clean or protected data.

Victims train from the stored, decoded images and are measured on clean test images. Because a fixed label shift can be
undone by whoever guesses it, accuracy after the best one-to-one relabelling of the predictions stands beside the plain one.
Accuracies are those on the test images of the protected classes; where not all classes are, one on the others stands beside them.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import fields
from itertools import product
from typing import Any

import pyarrow as pa
import torch

from cluster import session, sweep
from cluster.pool import WorkFailed
from pipeline.config.schema import RunConfig, deciding
from pipeline.shards.tables import rows_to_table, write_table
from pipeline.storage.folder import Folder
from pipeline.storage.layout import UNFINISHED, sibling_points
from pipeline.storage.records import digest, shown
from pipeline.storage.stage import Manifest, Stage
from pipeline.training import trial_records
from pipeline.training.batches import fits
from pipeline.training.trial import Trial, VictimTask, accuracy_per_class, bytes_per_value, trial
from sep.countermeasures import registry as countermeasures
from sep.countermeasures.registry import Data
from sep.fitting import TrainConfig

log = logging.getLogger(__name__)

RESULTS = "results.parquet"
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


def _outcome(folder: Folder, task: VictimTask) -> dict[str, Any] | None:
    """The result of a finished trial that was made from the same."""
    return trial_records.read(folder, task.cell.name, task.made_from)


def _rows(folder: Folder, tasks: Collection[VictimTask]) -> list[dict[str, Any]]:
    """As in `results.parquet`, of the trials that have finished."""
    # What earlier versions left has the table and not the accuracy of each class.
    there = (outcome for task in tasks if (outcome := _outcome(folder, task)) is not None)
    of_classes = ({**outcome, "accuracy_per_class": accuracy_per_class(torch.tensor(outcome["confusion"]))} for outcome in there)
    return [{name: outcome[name] for name in SCHEMA.names} for outcome in of_classes]


def _trained_elsewhere(tasks: Collection[VictimTask], folder: Folder) -> None:
    """Take over what other points of the same sweep have trained: of them all, clean victims are the same."""
    others = [other.child("victim") for other in sibling_points(folder)]
    for task in tasks:
        if others and task.cell.data == "clean" and _outcome(folder.child("victim"), task) is None:
            outcome = next((found for other in others if (found := _outcome(other, task)) is not None), None)
            if outcome is not None:
                trial_records.write(folder.child("victim"), task.cell.name, outcome)


def execute(config: RunConfig, folder: Folder) -> Manifest:
    """Train the victims that are not trained yet: with `--overwrite`, also those that a changed configuration asks for anew.

    Outcomes that are not asked for stay where they are: each knows what it was made from, and may be asked for again.

    Raises:
        ValueError: an earlier stage has not finished, there are no test images, or the stage was done with another
            configuration.
        WorkFailed: trials failed, after all others were finished.
    """
    victim, inputs = config.victim, ("pack", "protect")
    section = deciding(victim)
    stage = Stage(folder, "victim", section, seed=config.seed, inputs=inputs, overwrite=config.overwrite, pieces_know=True)
    if stage.manifest:
        return stage.manifest
    pack, protect = Manifest.load(folder, "pack"), Manifest.load(folder, "protect")
    if not pack.shards["test"]:
        raise ValueError("victims are measured on test images, and the packed data has none: pack with --pack.test-fraction 0.1")
    resources = session.connect(config.workers)
    kinds: tuple[Data, Data] = ("clean", "protected")
    cells = [Trial(n, d, c, s) for n, c, s, d in product(victim.networks, victim.countermeasures, victim.seeds, kinds)]
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
            trial_records.write(stage.folder, name, {**outcome, **same})
    rows = _rows(stage.folder, tasks.values())
    if failed:  # reports show what there is
        lost = [name for name, task in tasks.items() if _outcome(stage.folder, task) is None]
        stage.folder.write(UNFINISHED, trial_records.encode({"asked": stage.hash, "trials": rows, "missing": lost}))
        raise failed
    assert len(rows) == len(tasks)
    stage.folder.remove(UNFINISHED)
    write_table(stage.folder, RESULTS, rows_to_table(rows, SCHEMA))
    return stage.finish({"trials": len(rows)})


def _task(
    cell: Trial, config: RunConfig, folder: Folder, pack: Manifest, protect: Manifest, resources: session.Resources, at_once: int
) -> VictimTask:
    """A trial's task. Clean victims depend on nothing that was protected, and no victim on which others there are."""
    train = pack if cell.trained.data == "clean" else protect
    protected = tuple(protect.counts["classes"])
    training = {field.name: getattr(config.victim, field.name) for field in fields(TrainConfig)}
    cpus, gpu = resources.cpus_for(at_once, config.victim.trials_per_gpu), bool(resources.gpu)
    plan = countermeasures.plan(cell.trained.countermeasure)
    decides = [cell.__dict__, training, config.seed, pack.digest, train.digest, protected, torch.__version__, gpu]
    decides += [{"revision": plan.revision}] if plan.revision else []
    image_bytes = 3 * pack.counts["height"] * pack.counts["width"] * bytes_per_value(plan)
    decides += [] if fits(train.shards["train"], image_bytes, config.memory_limit_mb) else ["streamed"]
    made_from = digest(decides)
    return VictimTask(cell, config.victim, config.seed, folder, pack, protected, train, made_from, config.memory_limit_mb, cpus, gpu)


def _log(name: str, result: dict[str, Any]) -> None:
    log.info("victim: %s, epoch %d: test accuracy %.1f %%", name, result["epoch"] + 1, result["test_accuracy"])
