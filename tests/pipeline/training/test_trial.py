"""A victim's training: the same outcome however often it is interrupted, and no other file at the end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.deadline import Deadline, TimeIsUp
from cluster.resources import Resources
from pipeline.storage.folder import Folder
from pipeline.storage.records import to_json
from pipeline.storage.stage import Manifest
from pipeline.training import states, trial_records
from pipeline.training.trial import Trial, VictimTask, task_of, train_victim
from sep.choices import Precision
from tests.fixtures import finished_run

ONE_CPU = Resources(nodes=((1, 0),), workers=1, tasks=1)
TRIAL = Trial("resnet8", "protected", "mixup", 0)
LATE = Deadline(0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A tiny run with protected images."""
    return finished_run.write(tmp_path_factory.mktemp("run"), ("pack", "surrogate", "protect"))[1]


def task(folder: Folder, resources: Resources = ONE_CPU, **training: Any) -> VictimTask:
    """A trial of three epochs."""
    config = finished_run.configuration(Path(folder.path))
    settings = {"epochs": 3, "augmentation": "crop-flip", **training}
    config = replace(config, victim=replace(config.victim, **settings))
    return task_of(TRIAL, config, folder, Manifest.load(folder, "pack"), Manifest.load(folder, "protect"), resources, 1)


def trained(task: VictimTask) -> tuple[list[int], bytes]:
    """Train, and return the reported epochs and the bytes of the outcome, without its time."""
    threads, epochs = torch.get_num_threads(), []
    try:
        train_victim(task, lambda metrics: epochs.append(int(metrics["epoch"])))
    except TimeIsUp:
        return epochs, b""
    finally:
        torch.set_num_threads(threads)
    name = f"{task.trial.name}.json"
    outcome = json.loads(task.run.child("victim").read(name))["content"]
    task.run.child("victim").remove(name)
    assert outcome.pop("seconds") > outcome.pop("waiting_seconds") > 0
    return epochs, to_json(outcome)


def files(folder: Folder) -> list[str]:
    return folder.child("victim").names()


def test_a_trial_that_a_deadline_cuts_short_comes_to_the_same_outcome(folder: Folder) -> None:
    whole = trained(task(folder))
    assert whole[0] == [0, 1, 2]
    late = replace(task(folder), deadline=LATE)
    assert trained(late) == ([0], b"")
    assert files(folder) == [f"{TRIAL.name}.pt"]
    assert trained(late) == ([1], b"")
    assert trained(late) == ([2], whole[1])  # the last epoch is trained whole
    assert files(folder) == []


@pytest.mark.parametrize(("save_seconds", "left"), [(0.0, [2]), (1000.0, [0, 1, 2])])
def test_a_killed_trial_goes_on_from_its_last_state(
    save_seconds: float, left: list[int], folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "SAVE_SECONDS", save_seconds)
    monkeypatch.setattr(states, "LEAST_WORK", 0)

    def killed(metrics: dict[str, float]) -> None:
        if metrics["epoch"] == 2:
            raise KeyboardInterrupt

    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        train_victim(task(folder), killed)
    torch.set_num_threads(threads)
    epochs, outcome = trained(task(folder))
    assert epochs == left
    monkeypatch.undo()
    assert trained(task(folder))[1] == outcome


def test_a_state_of_another_training_does_not_count(folder: Folder) -> None:
    assert trained(replace(task(folder), deadline=LATE)) == ([0], b"")
    other = task(folder, lr=0.01)
    assert trained(other)[0] == [0, 1, 2]
    assert files(folder) == []


def test_the_outcome_says_its_precision_which_decides_it(folder: Folder) -> None:
    made_from = {}
    asked: tuple[Precision, ...] = ("auto", "float32", "bf16")
    for precision in asked:
        made = task(folder, precision=precision)
        made_from[precision] = made.made_from
        train_victim(made, lambda metrics: None)
        outcome = trial_records.read(folder.child("victim"), TRIAL.name, made.made_from)
        assert outcome is not None
        assert outcome["precision"] == ("bf16" if precision == "bf16" else "float32")
    assert made_from["auto"] == made_from["float32"] != made_from["bf16"]
    folder.child("victim").remove(f"{TRIAL.name}.json")


def test_on_a_gpu_what_was_asked_decides(folder: Folder) -> None:
    gpu = Resources(nodes=((1, 1),), workers=1, tasks=1)
    asked: tuple[Precision, ...] = ("auto", "float32", "bf16", "tf32")
    assert len({task(folder, resources, precision=precision).made_from for resources in (ONE_CPU, gpu) for precision in asked}) == 7


def test_how_fast_it_trains_decides_nothing(folder: Folder) -> None:
    assert task(folder, recorded=False).made_from == task(folder).made_from != task(folder, epochs=2).made_from


def test_a_trial_that_diverges_says_what_to_do_and_leaves_nothing(folder: Folder) -> None:
    with pytest.raises(ValueError, match=r"training diverged in epoch \d .*lower --victim\.lr"):
        trained(task(folder, lr=1e12))
    assert files(folder) == []
