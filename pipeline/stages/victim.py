"""Stage 4: the accuracy an unauthorised trainer would get, one trial per network, countermeasure, seed, and clean or protected data.

Victims train on the stored, decoded images and are measured on clean test images. Whoever guesses a fixed label shift can undo it, so
the accuracy after the best one-to-one relabelling of the predictions stands beside the plain one. Accuracies are on the test images of
the protected classes; where only some classes are protected, the accuracy on the others stands beside them.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from typing import Any

import pyarrow as pa

from cluster.deadline import TimeIsUp
from cluster.executor import Executor
from cluster.progress import Epochs
from cluster.work import WorkFailed
from pipeline.config.marks import without
from pipeline.config.schema import RunConfig, VictimConfig, deciding
from pipeline.config.sight import recorded_form, recorded_input, victim_side
from pipeline.results.run_results import RunResults
from pipeline.results.waiting import waiting_percent
from pipeline.shards.tables import rows_to_table, write_table
from pipeline.storage.folder import Folder
from pipeline.storage.layout import RESULTS, UNFINISHED
from pipeline.storage.records import counted, shown, to_json
from pipeline.storage.run import Run, sibling_points
from pipeline.storage.stage import Manifest, Stage, read_started
from pipeline.training import states, trial_records
from pipeline.training.trial import Trial, VictimTask, task_of, train_victim
from sep.countermeasures import registry as countermeasures
from sep.countermeasures.registry import Data

log = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [
        ("network", pa.string()),
        ("data", pa.string()),
        ("countermeasure", pa.string()),
        ("stored", pa.string()),
        ("seed", pa.int64()),
        ("precision", pa.string()),
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
    """Return the outcome of a finished trial with the task's `made_from`, or None."""
    return trial_records.read(folder, task.trial.name, task.made_from)


def _rows(folder: Folder, tasks: Collection[VictimTask]) -> list[dict[str, Any]]:
    """Return the rows of `results.parquet` of the trials that have finished."""
    there = (outcome for task in tasks if (outcome := _outcome(folder, task)) is not None)
    return [{name: ({"stored": VictimConfig.stored} | outcome)[name] for name in SCHEMA.names} for outcome in there]


def _trained_elsewhere(tasks: Collection[VictimTask], folder: Run) -> None:
    """Copy the outcomes of clean victims from other points of the same sweep, which all have the same ones."""
    others = [other.child("victim") for other in sibling_points(folder)]
    for task in tasks:
        if others and task.trial.data == "clean" and _outcome(folder.child("victim"), task) is None:
            outcome = next((found for other in others if (found := _outcome(other, task)) is not None), None)
            if outcome is not None:
                trial_records.write(folder.child("victim"), task.trial.name, outcome)


def execute(config: RunConfig, folder: Run, executor: Executor) -> Manifest:
    """Train the victims that have no outcome yet; with `--overwrite`, also victims that a changed configuration asks for anew.

    A stage that was finished for more countermeasures is done. One that was begun for more is finished for these, without `--overwrite`.
    Outcomes that this configuration does not ask for stay where they are: each records its `made_from`, and may be asked for again. The
    states of unfinished trials are large, and are removed.

    Raises:
        ValueError: an earlier stage has not finished, the packed data has no test images, or the stage was done with another
            configuration.
        WorkFailed: trials failed, after all others were finished.
    """
    victim, pack, protect = config.victim, Manifest.load(folder, "pack"), Manifest.load(folder, "protect")
    section = without(deciding(victim), ("stored", "input_size")) | recorded_form(config) | recorded_input(victim_side(config))
    more = not config.overwrite and _asked_for_more(folder, section)
    if more and (done := RunResults.read(folder).manifests.get("victim")):
        log.info("victim: done before, under more countermeasures than these")
        return done
    overwrite = config.overwrite or more
    stage = Stage(folder, "victim", section, seed=config.seed, inputs=(pack, protect), overwrite=overwrite, pieces_know=True)
    if stage.manifest:
        return stage.manifest
    if not pack.shards["test"]:
        raise ValueError("victims are measured on test images, and the packed data has none: pack with --pack.test-fraction 0.1")
    resources = executor.connect(config.workers)
    kinds: tuple[Data, Data] = ("clean", "protected")
    trials = [Trial(n, d, c, s) for n, c, s, d in product(victim.networks, victim.countermeasures, victim.seeds, kinds)]
    each = victim.trials_per_gpu if resources.gpu else 1
    at_once = min(len(trials), resources.tasks * each)  # not of the missing ones: a trial that is done again gets as many threads as before
    made = {trial.name: task_of(trial, config, folder, pack, protect, resources, at_once) for trial in trials}
    tasks = {name: replace(task, deadline=executor.deadline) for name, task in made.items()}
    _trained_elsewhere(tasks.values(), folder)
    missing = {name: task for name, task in tasks.items() if _outcome(stage.folder, task) is None}
    twins = {_shared(trial, victim): tasks[trial.name] for trial in reversed(trials)}  # the first of several that share a training
    trained = _in_turn({name: task for name, task in missing.items() if twins[_shared(task.trial, victim)] is task}, victim)
    states.remove_others(stage.folder, trained)
    if missing and len(missing) < len(tasks):
        log.info("victim: %d of %d trials are there already; left: %s", len(tasks) - len(missing), len(tasks), shown([*missing]))
    failed: WorkFailed | TimeIsUp | None = None
    if trained:
        cpus = resources.cpus_for(at_once, each)
        with Epochs(stage.name, {name: task.plan.training(victim).epochs for name, task in trained.items()}, at_once) as progress:
            try:
                told = partial(_reached, progress)
                executor.sweep(train_victim, trained, what=stage.name, at_once=at_once, cpus=cpus, gpu=resources.gpu / each, on_result=told)
            except (WorkFailed, TimeIsUp) as error:
                failed = error
    _say_waiting([outcome for task in trained.values() if (outcome := _outcome(stage.folder, task)) is not None])
    _copy_shared(stage.folder, [(task, twins[_shared(task.trial, victim)]) for name, task in missing.items() if name not in trained])
    rows = _rows(stage.folder, tasks.values())
    if failed:  # reports show the finished trials
        lost = [name for name, task in tasks.items() if _outcome(stage.folder, task) is None]
        stage.folder.write(UNFINISHED, to_json({"asked": stage.hash, "trials": rows, "missing": lost}))
        raise failed
    assert len(rows) == len(tasks)
    stage.folder.remove(UNFINISHED)
    write_table(stage.folder, RESULTS, rows_to_table(rows, SCHEMA))
    return stage.finish({"trials": len(rows), "precision": sorted({row["precision"] for row in rows})})


def _copy_shared(folder: Folder, twins: Sequence[tuple[VictimTask, VictimTask]]) -> None:
    """Give trials the outcomes of those that have trained for them."""
    for task, twin in twins:
        if (outcome := _outcome(folder, twin)) is not None:
            same = {**asdict(task.trial), "made_from": task.made_from}
            trial_records.write(folder, task.trial.name, {**outcome, **same, "seconds": 0.0, "waiting_seconds": 0.0})


def _say_waiting(outcomes: Sequence[dict[str, Any]]) -> None:
    if outcomes:
        log.info("victim: %s, %.0f %% of the time waiting for images", counted(len(outcomes), "training"), waiting_percent(outcomes))


def _asked_for_more(folder: Run, section: dict[str, Any]) -> bool:
    """Return whether an earlier start, such as an audit, asked for the same as this one and for further countermeasures."""
    try:
        earlier = read_started(folder, "victim").get("victim", {})
    except (FileNotFoundError, ValueError):  # which the stage itself says
        return False
    names = earlier.get("countermeasures", [])
    return {*section["countermeasures"]} < {*names} and bool(earlier == {**section, "countermeasures": names})


def _in_turn(tasks: dict[str, VictimTask], victim: VictimConfig) -> dict[str, VictimTask]:
    """Return tasks by countermeasure, so that each has both of its figures before the next begins.

    Clean images come last: where time is up, other runs may know their figure.
    """
    turns = {name: turn for turn, name in enumerate(victim.countermeasures)}
    return dict(sorted(tasks.items(), key=lambda each: (turns[each[1].trial.countermeasure], each[1].trial.data == "clean")))


def _shared(trial: Trial, victim: VictimConfig) -> Trial:
    """Return the trial whose training gives this one's result too. A pretrained network of a library is the same for all architectures."""
    trained = trial.trained
    named = countermeasures.plan(trained.countermeasure).initial and not victim.pretrained.is_file
    return replace(trained, network=victim.networks[0]) if named else trained


def _reached(progress: Epochs, name: str, result: dict[str, Any]) -> None:
    progress.reached(name, result["epoch"] + 1)
