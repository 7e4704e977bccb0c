"""Work that this process shares with others: the same results, retries, errors and deadline as alone; a dead process costs nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from cluster import local
from cluster.deadline import Deadline, TimeIsUp
from cluster.local import LocalExecutor
from cluster.processes import cpus
from cluster.work import Capacity, Chain, Work, WorkFailed
from tests import ROOT

TWO = LocalExecutor(processes=2)
GPU = Capacity(gpus=1)  # decides where a piece goes, whether there is one or not


@pytest.fixture(autouse=True)
def share_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "ALONE_SECONDS", -1.0)


@dataclass(frozen=True)
class Countdown(Deadline):
    """A deadline that passes when it has been asked so many times."""

    looks: list[bool] = field(default_factory=list)

    def passed(self) -> bool:
        return self.looks.pop(0)


class Place(NamedTuple):
    name: str
    process: int
    threads: int
    code: str


class Odd(Exception):
    """An error that cannot be made again from what it says."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


@dataclass(frozen=True)
class UntilDeath(Deadline):
    """A deadline that passes when a process has died, and has done its work."""

    folder: Path = Path()

    def passed(self) -> bool:
        return bool(list(self.folder.glob("dies *")))


def elsewhere() -> bool:
    return multiprocessing.parent_process() is not None


def trouble(name: str, folder: Path) -> Place:
    """Work that runs into trouble, and leaves a file for each start."""
    starts = len(list(folder.glob(f"{name} *")))
    (folder / f"{name} {starts}").touch()
    if name == "storage" and starts < 2:
        raise OSError("connection reset")
    if name == "broken":
        raise ValueError("label 7 is out of range")
    if name == "dies" and elsewhere():
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "odd":
        raise Odd("one", "two")
    return Place(name, os.getpid(), torch.get_num_threads(), local.__file__)


def pieces(folder: Path, *names: str) -> list[Work]:
    return [Work(name, (name, folder)) for name in names]


def starts(folder: Path) -> list[str]:
    return sorted(path.name.partition(" ")[0] for path in folder.iterdir())


def test_a_limit_of_this_process_is_one_of_its_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """And so is that of a container, which loky reads as well."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {5}, raising=False)
    assert cpus() == 1


def test_pieces_are_shared_and_troubles_are_those_of_one_process(tmp_path: Path) -> None:
    found: dict[str, Place] = {}
    with pytest.raises(WorkFailed) as raised:  # noqa: PT012  # what came before the error counts as well
        for name, place in TWO.run_all(trouble, pieces(tmp_path, "one", "storage", "broken", "two"), what="pack"):
            found[name] = place
    assert raised.value.causes == {"broken": "ValueError: label 7 is out of range"}
    assert found.keys() == {"one", "storage", "two"}
    assert os.getpid() not in {place.process for place in found.values()}
    assert {(place.threads, place.code) for place in found.values()} == {(1, local.__file__)}
    assert starts(tmp_path) == ["broken", "one", *["storage"] * 3, "two"]


@pytest.mark.faults
def test_the_work_of_a_dead_process_is_done_here(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ("one", "dies", "two", "three", "four")
    found = dict(TWO.run_all(trouble, pieces(tmp_path, *names), what="pack"))
    assert found.keys() == set(names)
    assert found["dies"].process == os.getpid()
    assert "a helping process died" in caplog.text


@pytest.mark.faults
def test_when_a_process_dies_nothing_begins_after_the_deadline(tmp_path: Path) -> None:
    done = []
    with pytest.raises(TimeIsUp):  # noqa: PT012
        for name, _ in LocalExecutor(UntilDeath(folder=tmp_path), 4).run_all(trouble, pieces(tmp_path, "dies", *"abcdefgh"), what="pack"):
            done.append(name)
    assert "dies" not in done
    assert starts(tmp_path).count("dies") == 1


def test_an_error_that_cannot_be_sent_is_told_in_words(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = {}
    with pytest.raises(WorkFailed) as raised:  # noqa: PT012
        for name, place in TWO.run_all(trouble, pieces(tmp_path, *"ab", "odd", *"cd"), what="pack"):
            found[name] = place
    assert raised.value.causes == {"odd": "RuntimeError: Odd: one and two"}
    assert found.keys() == set("abcd")
    assert "died" not in caplog.text


def test_what_is_begun_in_time_is_finished_and_nothing_else_begins(tmp_path: Path) -> None:
    done = []
    with pytest.raises(TimeIsUp):  # noqa: PT012
        executor = LocalExecutor(Countdown(looks=[False, False, *[True] * 9]), 2)
        for name, _ in executor.run_all(trouble, pieces(tmp_path, *"abc"), what="pack"):
            done.append(name)
    assert sorted(done) == starts(tmp_path) == ["a", "b"]


def test_one_piece_and_pieces_that_need_the_gpu_stay_here(tmp_path: Path) -> None:
    alone = dict(TWO.run_all(trouble, pieces(tmp_path, "one"), what="precision"))
    both = dict(TWO.run_all(trouble, pieces(tmp_path, "one", "two"), what="class means", capacity=GPU))
    limited = dict(TWO.run_all(trouble, pieces(tmp_path, "one", "two"), what="pack", capacity=Capacity(1)))
    assert {place.process for found in (alone, both, limited) for place in found.values()} == {os.getpid()}


class Steps(NamedTuple):
    read: int
    computed: int
    stored: int
    total: Tensor


def read(number: int, folder: Path) -> tuple[int, Tensor]:
    if number == 2:
        raise ValueError("altered")
    return os.getpid(), torch.full((3,), number)


def compute(number: int, folder: Path, found: tuple[int, Tensor]) -> tuple[int, Tensor]:
    if number == 3:
        raise ValueError("not finite")
    return os.getpid(), found[1] * 10


def store(number: int, folder: Path, found: tuple[int, Tensor], computed: tuple[int, Tensor]) -> Steps:
    (folder / f"{number} ").touch()
    return Steps(found[0], computed[0], os.getpid(), found[1] + computed[1])


CHAIN = Chain(read, compute, store)


def chained(folder: Path, count: int) -> list[Work]:
    return [Work(str(number), (number, folder)) for number in range(count)]


def test_only_what_needs_the_gpu_is_done_here(tmp_path: Path) -> None:
    found: dict[str, Steps] = {}
    with pytest.raises(WorkFailed) as raised:  # noqa: PT012
        for name, steps in TWO.run_all(CHAIN, chained(tmp_path, 6), what="protect", capacity=GPU):
            found[name] = steps
    assert raised.value.causes == {"2": "ValueError: altered", "3": "ValueError: not finite"}
    assert {name: steps.total.tolist() for name, steps in found.items()} == {str(n): [11 * n] * 3 for n in (0, 1, 4, 5)}
    assert {steps.computed for steps in found.values()} == {os.getpid()}
    assert found["0"].read == os.getpid()  # while the others start
    assert os.getpid() not in {steps.read for name, steps in found.items() if name != "0"} | {steps.stored for steps in found.values()}


def test_what_was_computed_in_time_is_stored(tmp_path: Path) -> None:
    done = []
    with pytest.raises(TimeIsUp):  # noqa: PT012
        executor = LocalExecutor(Countdown(looks=[False, False, *[True] * 9]), 3)
        for name, _ in executor.run_all(CHAIN, chained(tmp_path, 9), what="protect", capacity=GPU):
            done.append(name)
    assert sorted(done) == starts(tmp_path) == ["0", "1"]


def wait(folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(600)


@pytest.mark.slow  # of what it starts
@pytest.mark.faults
def test_others_end_with_this_process_however_it_ends(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from cluster import local
from cluster.work import Work
from tests.cluster.test_processes import wait
local.ALONE_SECONDS = -1
list(local.LocalExecutor(processes=2).run_all(wait, [Work(str(n), (Path({str(tmp_path)!r}),)) for n in range(2)], what="wait"))
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT) as driver:
        while len(helpers := [int(path.name) for path in tmp_path.iterdir()]) < 2:
            assert driver.poll() is None
            time.sleep(0.05)
        driver.kill()
    while any(Path(f"/proc/{pid}").exists() for pid in helpers):  # or the test's own time is up
        time.sleep(0.05)
