from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.resources import Resources
from cluster.sweep import sweep
from cluster.work import Report, WorkFailed


@dataclass(frozen=True)
class Task:
    """What one trial is told."""

    trouble: str
    folder: Path


def trial(task: Task, report: Report) -> None:
    """Report two epochs; run into trouble after the first, each process leaving a file that says when it ran."""
    attempt = len(list(task.folder.glob(f"{task.trouble}-*"))) + 1
    trace = task.folder / f"{task.trouble}-{attempt}"
    trace.write_text(f"{os.getpid()} {time.time()} inf")
    begun = time.time()
    report({"epoch": 0})
    if task.trouble == "killed" and attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if task.trouble == "away" or (task.trouble == "storage" and attempt == 1):
        raise OSError("connection reset")
    if task.trouble == "broken":
        raise ValueError("no such countermeasure")
    time.sleep(0.3)
    trace.write_text(f"{os.getpid()} {begun} {time.time()}")
    report({"epoch": 1})


@pytest.mark.ray
def test_trials_run_apart_a_few_at_a_time_and_failures_are_named_at_the_end(
    ray_2_cpus: Resources,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, scratch, home = tmp_path / "traces", tmp_path / "scratch", tmp_path / "home"
    for path in (folder, scratch, home):
        path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setenv("HOME", str(home))
    reports: list[tuple[str, int]] = []
    held = threading.Lock()  # as the tracker's queue is: it cannot be pickled

    def on_result(name: str, result: dict[str, Any]) -> None:
        with held:
            reports.append((name, result["epoch"]))

    tasks = {f"task-{trouble}": Task(trouble, folder) for trouble in ("broken", "killed", "storage", "away", "well")}
    capfd.readouterr()
    with caplog.at_level("INFO", logger="cluster"), pytest.raises(WorkFailed) as raised:
        sweep(trial, tasks, what="victim", at_once=2, cpus=0.25, gpu=0, on_result=on_result)

    assert raised.value.causes == {"task-broken": "ValueError: no such countermeasure", "task-away": "OSError: connection reset"}
    attempts = {path.name: path.read_text().split() for path in folder.iterdir()}
    assert sorted(attempts) == [
        *("away-1", "away-2", "away-3", "broken-1"),
        *("killed-1", "killed-2", "storage-1", "storage-2", "well-1"),
    ]
    assert len({process for process, _, _ in attempts.values()}) == len(attempts)
    spans = [(float(begun), float(ended)) for _, begun, ended in attempts.values() if ended != "inf"]
    assert max(sum(begun <= moment < ended for begun, ended in spans) for moment, _ in spans) <= 2
    assert reports.count(("task-well", 0)) == reports.count(("task-well", 1)) == reports.count(("task-killed", 1)) == 1
    assert ("task-broken", 1) not in reports
    assert "victim: task-broken failed: ValueError: no such countermeasure" in caplog.text
    assert "victim: task-storage starts again after a dead process or a storage error" in caplog.text
    assert [*scratch.iterdir(), *home.iterdir()] == []
    console = capfd.readouterr()
    quiet = ("victim: ", "(raylet)")  # our own lines, and Ray's notice of the dead process
    assert [line for line in (console.out + console.err).splitlines() if line.strip() and not any(part in line for part in quiet)] == []
