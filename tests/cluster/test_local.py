"""Work in this process: the same retries, errors, progress, resume and deadline as on Ray."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster import display
from cluster.deadline import NEVER, Deadline, TimeIsUp
from cluster.epochs import RECORD, Metrics, Worker
from cluster.executor import open_executor
from cluster.local import LocalExecutor
from cluster.work import Chain, Report, TrainingFailed, Work, WorkFailed, own_gpu
from pipeline.storage.folder import Folder

LOCAL = LocalExecutor(NEVER)
LATE = LocalExecutor(Deadline(0))


@dataclass(frozen=True)
class Countdown(Deadline):
    """A deadline that passes when it has been asked so many times: time as tests can tell it."""

    looks: list[bool] = field(default_factory=list)

    def passed(self) -> bool:
        return self.looks.pop(0)


def after(pieces: int) -> LocalExecutor:
    """An executor whose time is up when so many pieces were begun."""
    return LocalExecutor(Countdown(looks=[*[False] * pieces, True]))


class Troubled:
    """A piece of work that runs into trouble, so many times as its name says, and notes every start."""

    def __init__(self) -> None:
        self.starts: list[str] = []

    def __call__(self, name: str) -> int:
        self.starts.append(name)
        trouble, _, times = name.partition("-")
        if trouble == "storage" and self.starts.count(name) <= int(times):
            raise OSError("connection reset")
        if trouble == "broken":
            raise ValueError("label 7 is out of range")
        if trouble == "out of time":
            raise TimeIsUp
        return self.starts.count(name)


def pieces(*names: str) -> list[Work]:
    return [Work(name, (name,), units=10) for name in names]


def test_storage_errors_are_retried_and_other_errors_are_named_after_everything_else(caplog: pytest.LogCaptureFixture) -> None:
    outcomes: dict[str, int] = {}
    troubled = Troubled()
    with pytest.raises(WorkFailed) as raised:  # noqa: PT012  # what came before the error counts as well
        for name, starts in LOCAL.run_all(troubled, pieces("broken", "storage-1", "storage-9", "well"), what="protect"):
            outcomes[name] = starts
    assert outcomes == {"storage-1": 2, "well": 1}
    assert raised.value.causes == {"broken": "ValueError: label 7 is out of range", "storage-9": "OSError: connection reset"}
    assert (troubled.starts.count("broken"), troubled.starts.count("storage-9")) == (1, 4)
    assert "protect: broken failed: ValueError: label 7 is out of range" in caplog.text
    assert "protect: storage-1 is done again after OSError: connection reset" in caplog.text


def test_progress_is_told_in_units(caplog: pytest.LogCaptureFixture) -> None:
    lines = []
    with caplog.at_level(logging.INFO, logger="cluster.progress"):
        for _ in LOCAL.run_all(Troubled(), pieces("one", "two"), what="protect"):
            lines.append(display._current()[1].split(", ")[0])
    assert lines == ["protect: 10 of 20 images", ""]
    assert [line.split(", ")[0] for line in caplog.messages] == ["protect: 20 of 20 images"]


def test_a_chain_is_gone_through_whole() -> None:
    chain = Chain(lambda number: number + 1, lambda number, read: read * 10, lambda number, read, made: (number, read, made))
    assert list(LOCAL.run_all(chain, [Work("piece", (1,))], what="chain")) == [("piece", (1, 2, 20))]


def test_nothing_more_is_done_when_the_caller_stops_listening() -> None:
    troubled = Troubled()
    for _ in LOCAL.run_all(troubled, pieces("one", "two"), what="protect"):
        break
    assert troubled.starts == ["one"]


def share(number: int) -> list[int]:
    if number < 0:
        raise ValueError("no number")
    return [number]


def add(*shares: list[int]) -> list[int]:
    return sorted(number for each in shares for number in each)


def unable(*shares: list[int]) -> list[int]:
    raise ValueError("shares of different ensembles")


@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_all_outcomes_are_combined(count: int) -> None:
    total, failed = LOCAL.combine_all(share, add, [Work(str(n), (n,)) for n in range(count)], what="sum")
    assert (total, failed) == (list(range(count)) or None, None)


def test_what_failed_is_named_beside_what_the_others_gave() -> None:
    total, failed = LOCAL.combine_all(share, add, [Work(str(n), (n,)) for n in (3, -1, 2)], what="sum")
    assert total == [2, 3]
    assert failed is not None
    assert failed.causes == {"-1": "ValueError: no number"}
    with pytest.raises(WorkFailed, match="combining: ValueError: shares of different ensembles"):
        LOCAL.combine_all(share, unable, [Work(str(n), (n,)) for n in range(2)], what="sum")


@dataclass
class Training:
    """What the loop is told, and where it is to fail."""

    epochs: int
    trouble: dict[int, Exception]
    firsts: list[int]


def loop(task: Training, worker: Worker) -> None:
    """Each epoch doubles the weight and adds one."""
    assert (worker.rank, worker.size) == (0, 1)
    network = worker.distribute(torch.nn.Linear(1, 1, bias=False))
    weight, first = 1.0, 0
    with worker.resumed() as kept:
        if kept is not None:
            weight = float((kept / "weight").read_text())
            first = int((kept / "epoch").read_text()) + 1
    task.firsts.append(first)
    for epoch in range(first, task.epochs):
        if error := task.trouble.pop(epoch, None):
            raise error
        weight = 2 * weight + 1
        files = {"weight": str(weight).encode(), "epoch": str(epoch).encode()}
        worker.report(epoch, {"loss": weight, "device": str(next(network.parameters()).device.type)}, files)


def train(task: Training, folder: Path, executor: LocalExecutor = LOCAL) -> tuple[list[Metrics], list[int]]:
    """The rows, and the epochs that were told meanwhile."""
    told: list[int] = []
    ranks: dict[str, Any] = {"workers": 1, "cpus": 1, "gpu": 0}
    place = Folder.open(str(folder))
    try:
        rows = executor.train(loop, task, what="resnet8", folder=place, **ranks, on_epoch=lambda row: told.append(row["epoch"]))
    except TimeIsUp:
        rows = []
    return rows, told


def test_a_failed_training_goes_on_from_its_last_epoch(tmp_path: Path) -> None:
    task = Training(4, {2: ValueError("labels must be 0..2,\ngot 7")}, [])
    with pytest.raises(TrainingFailed, match=r"^resnet8: ValueError: labels must be 0..2, got 7 \(rank 0\)$"):
        train(task, tmp_path)
    rows, told = train(task, tmp_path)
    assert task.firsts == [0, 2]
    assert told == [2, 3]
    assert rows == [{"epoch": epoch, "loss": 2.0 ** (epoch + 2) - 1, "device": "cpu"} for epoch in range(4)]
    assert train(task, tmp_path) == (rows, [])  # and a finished one trains nothing


def test_a_storage_error_costs_no_epoch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task = Training(3, {1: OSError("connection reset")}, [])
    rows, told = train(task, tmp_path)
    assert (task.firsts, told, len(rows)) == ([0, 1], [0, 1, 2], 3)
    assert "resnet8: starting again from the last saved epoch after OSError: connection reset" in caplog.text


@pytest.mark.parametrize("damaged", [RECORD, "weight"])
def test_an_epoch_cut_short_is_trained_again(tmp_path: Path, damaged: str) -> None:
    rows, _ = train(Training(3, {}, []), tmp_path)
    file = tmp_path / "epoch_0002" / damaged
    file.write_bytes(file.read_bytes()[:-1])
    task = Training(3, {}, [])
    again, told = train(task, tmp_path)
    assert (task.firsts, told, again) == ([2], [2], rows)


def trial(task: Troubled, report: Report) -> None:
    report({"epoch": 0})
    task(task.starts[0])
    report({"epoch": 1})


def tasks(*names: str) -> dict[str, Troubled]:
    made = {name: Troubled() for name in names}
    for name, task in made.items():
        task.starts.append(name)
    return made


def sweep(executor: LocalExecutor, tried: dict[str, Troubled]) -> list[tuple[str, float]]:
    reports: list[tuple[str, float]] = []

    def on_result(name: str, result: dict[str, Any]) -> None:
        reports.append((name, result["epoch"]))

    try:
        executor.sweep(trial, tried, what="victim", at_once=2, cpus=1, gpu=0, on_result=on_result)
    except TimeIsUp:
        reports.append(("time is up", 0))
    return reports


def test_failed_trials_are_named_at_the_end_and_storage_errors_retried(caplog: pytest.LogCaptureFixture) -> None:
    tried = tasks("broken", "storage-2", "storage-9", "well")
    with caplog.at_level("DEBUG", logger="cluster"), pytest.raises(WorkFailed) as raised:
        sweep(LOCAL, tried)
    assert raised.value.causes == {"broken": "ValueError: label 7 is out of range", "storage-9": "OSError: connection reset"}
    assert len(tried["storage-9"].starts) - 1 == 3
    assert "victim: storage-2 starts again after OSError: connection reset" in caplog.text
    assert "victim: broken failed: ValueError: label 7 is out of range" in caplog.text
    assert "victim: well done, 2 of 4" in caplog.text


def test_reports_of_trials_are_passed_on() -> None:
    assert sweep(LOCAL, tasks("one", "two")) == [("one", 0), ("one", 1), ("two", 0), ("two", 1)]


def test_no_piece_is_begun_when_the_time_is_up() -> None:
    troubled, done = Troubled(), []
    with pytest.raises(TimeIsUp):  # noqa: PT012
        for name, _ in after(2).run_all(troubled, pieces("one", "two", "three"), what="protect"):
            done.append(name)
    assert done == troubled.starts == ["one", "two"]
    with pytest.raises(TimeIsUp):
        after(1).combine_all(share, add, [Work(str(n), (n,)) for n in range(2)], what="sum")
    assert list(LATE.run_all(troubled, [], what="protect")) == []


def test_no_epoch_is_begun_when_the_time_is_up(tmp_path: Path) -> None:
    task = Training(3, {}, [])
    assert train(task, tmp_path, LATE) == ([], [])
    assert task.firsts == []
    assert train(task, tmp_path, after(2)) == ([], [0, 1])  # one look before the first, and one after each
    rows, told = train(task, tmp_path)
    assert (task.firsts, told, len(rows)) == ([0, 2], [2], 3)


def test_no_trial_is_begun_when_the_time_is_up() -> None:
    tried = tasks("one", "two", "three")
    assert sweep(after(1), tried) == [("one", 0), ("one", 1), ("time is up", 0)]
    assert sweep(LATE, tried) == [("time is up", 0)]


def test_what_stops_for_the_time_itself_has_not_failed() -> None:
    """A trial looks at the deadline between its epochs."""
    assert sweep(LOCAL, tasks("one", "out of time", "two")) == [("one", 0), ("one", 1), ("out of time", 0), ("time is up", 0)]
    with pytest.raises(TimeIsUp):
        list(LOCAL.run_all(Troubled(), pieces("out of time", "one"), what="protect"))


def test_it_is_one_worker_with_all_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("processes", "local"):
        monkeypatch.setattr(f"cluster.{place}.cpus", lambda: 3)
    executor = open_executor("local", NEVER)
    assert isinstance(executor, LocalExecutor)
    assert executor.processes == 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    resources = executor.connect()
    assert (resources.workers, resources.tasks, resources.gpu, resources.cpus_for(1)) == (1, 1, 0, 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert executor.connect(1).gpu == 1
    assert own_gpu() == 0
    with pytest.raises(ValueError, match="2 workers are asked for, but --executor local is one"):
        executor.connect(2)
    executor.close()
