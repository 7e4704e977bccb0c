from __future__ import annotations

import logging
import os
import pickle
import signal
import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest
import ray

from cluster import display, pool, progress
from cluster.deadline import NEVER
from cluster.pool import combine_all, run_all
from cluster.resources import Resources
from cluster.work import Capacity, Chain, Work, WorkFailed, describe, own_gpu, use_gpu


def timed(number: int) -> tuple[int, float, float]:
    begun = time.time()
    time.sleep(0.2)
    return number, begun, time.time()


def troubled(trouble: str, folder: Path) -> int:
    """Run into trouble on the first attempt only, and return the number of attempts."""
    attempt = len(list(folder.glob(f"{trouble}-*"))) + 1
    (folder / f"{trouble}-{attempt}").touch()
    if attempt == 1:
        if trouble == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if trouble == "storage":
            raise OSError("connection reset")
        if trouble == "broken":
            raise ValueError("label 7 is out of range")
    return attempt


def wait(seconds: float, folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(seconds)


def read(number: int) -> tuple[int, int]:
    return number, os.getpid()


def compute(number: int, found: tuple[int, int]) -> tuple[int, int]:
    return number + found[0], os.getpid()


def keep(number: int, found: tuple[int, int], made: tuple[int, int]) -> tuple[int, set[int]]:
    return number + made[0], {found[1], made[1], os.getpid()}


def share(number: int) -> list[int]:
    if number < 0:
        raise ValueError("no number")
    return [number]


def add(*shares: list[int]) -> list[int]:
    return sorted(number for each in shares for number in each)


def eventually(condition: Callable[[], bool], seconds: float = 15) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.mark.ray
def test_every_piece_is_yielded_once_and_no_more_than_at_once_run(ray_2_cpus: Resources) -> None:
    pieces = [Work(f"piece-{n}", (n,)) for n in range(10)]
    outcomes = list(run_all(timed, pieces, what="time", capacity=Capacity(2, cpus=0.25)))  # there would be CPUs for eight
    assert sorted((name, number) for name, (number, _, _) in outcomes) == sorted((f"piece-{n}", n) for n in range(10))
    spans = [(begun, ended) for _, (_, begun, ended) in outcomes]
    in_flight = [sum(begun <= moment < ended for begun, ended in spans) for moment, _ in spans]
    assert max(in_flight) == 2


@pytest.mark.ray
def test_dead_processes_and_storage_errors_are_retried_and_other_errors_are_not(
    ray_2_cpus: Resources, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pieces = [Work(name, (name, tmp_path), units=10) for name in ("broken", "killed", "storage", "well")]
    outcomes: dict[str, int] = {}
    with pytest.raises(WorkFailed) as raised:  # noqa: PT012  # what came before the error counts as well
        for name, attempts in run_all(troubled, pieces, what="protect", capacity=Capacity(2)):
            outcomes[name] = attempts
    assert outcomes == {"killed": 2, "storage": 2, "well": 1}
    assert raised.value.causes == {"broken": "ValueError: label 7 is out of range"}
    assert "protect: 1 failed" in str(raised.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken-1", "killed-1", "killed-2", "storage-1", "storage-2", "well-1"]
    assert "broken failed: ValueError: label 7 is out of range" in caplog.text


@pytest.mark.ray
def test_progress_is_told_with_its_rate(ray_2_cpus: Resources, caplog: pytest.LogCaptureFixture) -> None:
    lines = []
    with caplog.at_level(logging.INFO, logger="cluster.progress"):
        for _ in run_all(timed, [Work(str(n), (n,), units=50) for n in range(3)], what="protect", capacity=Capacity(1)):
            lines.append(display._current()[1])
    assert lines[1].startswith("protect: 100 of 150 images, ")
    assert lines[1].endswith(" s left")
    (last,) = caplog.messages
    assert last.startswith("protect: 150 of 150 images, ")
    assert 0 < float(last.removesuffix(" images/s").rpartition(" ")[2]) <= 50 / 0.2


@pytest.mark.ray
def test_running_tasks_are_cancelled_when_the_caller_stops_listening(ray_2_cpus: Resources, tmp_path: Path) -> None:
    quick, running, waiting = (tmp_path / name for name in ("quick", "running", "waiting"))
    for folder in (quick, running, waiting):
        folder.mkdir()
    pieces = [Work("quick", (0, quick)), Work("running", (600, running)), Work("waiting", (600, waiting))]
    with closing(cast(Generator[tuple[str, None]], run_all(wait, pieces, what="wait", capacity=Capacity(2)))) as results:
        assert next(results) == ("quick", None)
        assert eventually(lambda: any(running.iterdir()))
    process = Path("/proc") / next(running.iterdir()).name
    assert eventually(lambda: not process.exists())
    assert not any(waiting.iterdir())


@pytest.mark.ray
def test_a_chain_without_gpus_is_one_task(ray_2_cpus: Resources) -> None:
    results = dict(run_all(Chain(read, compute, keep), [Work(str(n), (n,)) for n in range(5)], what="chain"))
    assert {name: total for name, (total, _) in results.items()} == {str(n): 3 * n for n in range(5)}
    assert all(len(processes) == 1 for _, processes in results.values())


@pytest.mark.ray
@pytest.mark.parametrize("count", [1, 2, 8, 9, 75])
def test_all_outcomes_are_combined_once_whatever_their_number(ray_2_cpus: Resources, count: int) -> None:
    total, failed = combine_all(share, add, [Work(str(n), (n,)) for n in range(count)], what="sum", capacity=Capacity())
    assert total == list(range(count))
    assert failed is None


@pytest.mark.ray
def test_what_failed_is_named_beside_what_the_others_gave(ray_2_cpus: Resources) -> None:
    total, failed = combine_all(share, add, [Work(str(n), (n,)) for n in (3, -1, 2)], what="sum", capacity=Capacity())
    assert total == [2, 3]
    assert failed is not None
    assert failed.causes == {"-1": "ValueError: no number"}
    total, failed = combine_all(share, add, [Work("-1", (-1,))], what="sum", capacity=Capacity())
    assert total is None
    assert failed is not None


def unsummable(*shares: list[int]) -> list[int]:
    raise ValueError("no sum")


@pytest.mark.ray
def test_a_failure_of_combining_is_no_failure_of_a_piece(ray_2_cpus: Resources) -> None:
    with pytest.raises(WorkFailed) as failed:
        combine_all(share, unsummable, [Work(str(n), (n,)) for n in range(2)], what="sum", capacity=Capacity())
    assert failed.value.causes == {"combining": "ValueError: no sum"}


@pytest.mark.parametrize(("given", "own", "visible"), [(["2"], 2, None), ([], 0, None), (["GPU-0a1b"], 0, "GPU-0a1b")])
def test_a_piece_computes_on_the_gpu_that_ray_gave_it(
    given: list[str], own: int, visible: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number counts among all GPUs of the machine, so all must be visible; of any other name, Ray lets the process see only that one."""
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: given)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(given))
    try:
        assert pool._kept(NEVER, lambda more: (own_gpu() + more, os.environ.get("CUDA_VISIBLE_DEVICES")), 10) == (None, (own + 10, visible))
    finally:
        use_gpu(0)


def test_failures_survive_pickling() -> None:
    failure = WorkFailed("protect", {"train-000001.tar": "ValueError: no", "train-000000.tar": "OSError: gone"})
    copy = pickle.loads(pickle.dumps(failure))
    assert (str(copy), copy.causes) == (str(failure), failure.causes)
    assert str(failure).endswith("(train-000000.tar: OSError: gone; train-000001.tar: ValueError: no)")


def test_a_cause_is_one_line_without_wrapping() -> None:
    inner = ValueError("expected 3 classes,\n  got 2")
    outer = ray.exceptions.RayTaskError("work", "Traceback ...", inner).as_instanceof_cause()
    assert describe(outer) == describe(inner) == "ValueError: expected 3 classes, got 2"
    assert describe(OSError("\x1b[36mray::work()\x1b[39m died")) == "OSError: ray::work() died"
    assert describe(KeyError()) == "KeyError: no message"
    assert len(describe(OSError("far too long " * 100))) < 330


@pytest.mark.ray
def test_work_that_no_machine_can_do_is_waited_for_with_a_word_and_an_end(
    ray_2_cpus: Resources, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(pool, "MACHINES_SECONDS", 0.1)
    with pytest.raises(ConnectionError, match="gpu: no machine with a GPU for 0 minutes; finished work is saved: add machines"):
        list(run_all(timed, [Work("0", (0,))], what="gpu", capacity=Capacity(1, gpus=1)))
    assert "gpu: waiting up to 0 minutes for a machine with a GPU" in caplog.text
