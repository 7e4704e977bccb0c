"""On Ray no piece, epoch or trial is begun when the time is up; those that were begun in time are finished and kept."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from cluster.deadline import Deadline, TimeIsUp
from cluster.epochs import Worker, kept
from cluster.ray_executor import RayExecutor
from cluster.resources import Resources
from cluster.work import Capacity, Report, Work
from pipeline.storage.folder import Folder

pytestmark = pytest.mark.ray

AT_LEAST, AT_MOST = 1, 5  # of six pieces of a second each, two at a time, in a bit more than two seconds


def wait(seconds: float) -> list[int]:
    time.sleep(seconds)
    return [1]


def together(*found: list[int]) -> list[int]:
    return [sum(number for each in found for number in each)]


def loop(seconds: float, worker: Worker) -> None:
    """Ranks that look at the clock at different moments."""
    with worker.resumed() as folder:
        first = 0 if folder is None else int((folder / "epoch").read_text()) + 1
    for epoch in range(first, 4):
        time.sleep(seconds * (1 + worker.rank))
        worker.report(epoch, {"first": first}, {"epoch": str(epoch).encode()})


def trial(seconds: float, report: Report) -> None:
    report({"epoch": 0})
    time.sleep(seconds)
    report({"epoch": 1})


def stopping(seconds: float, report: Report) -> None:
    """One that looks at the clock itself."""
    report({"epoch": 0})
    raise TimeIsUp


def test_no_piece_is_begun_when_the_time_is_up(ray_2_cpus: Resources) -> None:
    pieces = [Work(str(n), (1.0,)) for n in range(6)]
    list(RayExecutor().run_all(wait, [Work("first", (0.0,))], what="start"))  # of the processes
    executor = RayExecutor(Deadline(time.time() + 2.2))
    names = []
    with pytest.raises(TimeIsUp):  # noqa: PT012
        for name, _ in executor.run_all(wait, pieces, what="wait"):  # all of which are submitted at once
            names.append(name)
    assert AT_LEAST <= len(names) <= AT_MOST
    with pytest.raises(TimeIsUp):
        list(executor.run_all(wait, pieces, what="wait", capacity=Capacity(2)))
    with pytest.raises(TimeIsUp):
        RayExecutor(Deadline(time.time() + 1.2)).combine_all(wait, together, pieces, what="wait")


def test_all_ranks_stop_after_the_same_epoch_and_go_on_from_it(ray_2_cpus: Resources, tmp_path: Path) -> None:
    place = Folder.open(str(tmp_path)).child("surrogate")
    told: list[int] = []
    settings: dict[str, Any] = {"what": "surrogate", "folder": place, "workers": 2, "cpus": 1, "gpu": 0}
    settings["on_epoch"] = lambda row: told.append(row["epoch"])
    with pytest.raises(TimeIsUp):
        RayExecutor(Deadline(time.time() + 0.1)).train(loop, 0.3, **settings)  # which is over before the ranks have started
    assert told == [row["epoch"] for row in kept(place)] == [0]
    with pytest.raises(TimeIsUp):
        RayExecutor(Deadline(0)).train(loop, 0.3, **settings)
    assert told == [0]
    rows = RayExecutor(Deadline.after(10)).train(loop, 0.1, **settings)
    assert [row["first"] for row in rows] == [0, 1, 1, 1]
    assert told == [0, 1, 2, 3]


def test_no_trial_is_begun_when_the_time_is_up(ray_2_cpus: Resources, caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []

    def on_result(name: str, result: dict[str, Any]) -> None:
        if result["epoch"] == 1:
            done.append(name)

    settings: dict[str, Any] = {"what": "victim", "at_once": 1, "cpus": 1, "gpu": 0, "on_result": on_result}
    cells = {f"cell-{n}": 8.0 for n in range(6)}
    begun = time.monotonic()
    with caplog.at_level("INFO", logger="cluster"), pytest.raises(TimeIsUp):
        RayExecutor(Deadline(time.time() + 14)).sweep(trial, cells, **settings)
    assert 1 <= len(done) <= 2
    assert time.monotonic() - begun < 60  # no process was started for each that is left
    assert f"{done[0]} done, 1 of 6" in caplog.text
    with pytest.raises(TimeIsUp):
        RayExecutor().sweep(stopping, {"cell": 0.0}, **settings)
