"""On Ray no piece or trial is begun when the time is up; what was begun in time is finished and kept."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune

from cluster.deadline import NEVER, Deadline, TimeIsUp
from cluster.ray_executor import RayExecutor
from cluster.resources import Resources
from cluster.sweep import FAILED, LATE, _OutOfTime, _Progress, _trial
from cluster.work import Capacity, Report, Work

AT_LEAST, AT_MOST = 1, 5  # of six pieces of a second each, two at a time, in a bit more than two seconds


def wait(seconds: float) -> list[int]:
    time.sleep(seconds)
    return [1]


def together(*found: list[int]) -> list[int]:
    return [sum(number for each in found for number in each)]


def trial(seconds: float, report: Report) -> None:
    report({"epoch": 0})
    time.sleep(seconds)
    report({"epoch": 1})


def stopping(seconds: float, report: Report) -> None:
    """One that looks at the clock itself."""
    report({"epoch": 0})
    raise TimeIsUp


@pytest.mark.ray
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


def test_a_sweep_ends_with_the_last_trial_that_began_in_time() -> None:
    in_time, late = (SimpleNamespace(config={"name": name}) for name in ("in time", "late"))
    told: list[str] = []
    progress = _Progress("victim", lambda name, result: told.append(name), NEVER)
    stopper = _OutOfTime(progress)
    progress.on_trial_start(0, [], in_time)
    progress.deadline = Deadline(0)
    progress.on_trial_start(0, [], late)
    progress.on_trial_result(0, [], late, {LATE: True})
    progress.on_trial_complete(0, [], late)
    assert not stopper.stop_all()
    progress.on_trial_result(0, [], in_time, {"epoch": 1})
    progress.on_trial_complete(0, [], in_time)
    assert stopper.stop_all()
    assert (told, progress.done, progress.causes) == (["in time"], 1, {})


@pytest.mark.ray
@pytest.mark.slow
def test_no_trial_is_begun_when_the_time_is_up(ray_2_cpus: Resources) -> None:
    done: list[str] = []

    def on_result(name: str, result: dict[str, Any]) -> None:
        if result["epoch"] == 1:
            done.append(name)

    settings: dict[str, Any] = {"what": "victim", "at_once": 1, "cpus": 1, "gpu": 0, "on_result": on_result}
    tasks = {f"task-{n}": 8.0 for n in range(6)}
    begun = time.monotonic()
    RayExecutor().sweep(trial, {"first": 0.0}, **settings)
    start, done[:] = time.monotonic() - begun, []
    with pytest.raises(TimeIsUp):
        RayExecutor(Deadline(time.time() + start + 6)).sweep(trial, tasks, **settings)
    assert 1 <= len(done) <= 2
    with pytest.raises(TimeIsUp):
        RayExecutor().sweep(stopping, {"task": 0.0}, **settings)


def test_a_trial_says_why_it_ends_before_its_last_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    reports: list[dict[str, Any]] = []
    monkeypatch.setattr(tune, "report", reports.append)

    def end(deadline: Deadline, error: Exception | None) -> list[dict[str, Any]]:
        def function(task: str, report: Report) -> None:
            report({"epoch": len(task)})
            if error:
                raise error

        reports.clear()
        _trial({"name": "one"}, function, {"one": "two"}, deadline)
        return reports

    assert end(NEVER, None) == [{"epoch": 3}]
    assert end(Deadline(0), None) == [{LATE: True}]
    assert end(NEVER, TimeIsUp()) == [{"epoch": 3}, {LATE: True}]
    assert end(NEVER, ValueError("no such label")) == [{"epoch": 3}, {FAILED: "ValueError: no such label"}]
    with pytest.raises(OSError, match="reset"):  # Tune starts it again
        end(NEVER, OSError("reset"))
