"""Two drivers on one run: the second refuses, on local folders and on storage without locks; a dead driver does not block the next."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import fs

from pipeline.storage import driver_lock as lock_module
from pipeline.storage.driver_lock import Driven, driver_lock
from pipeline.storage.folder import Folder
from pipeline.storage.layout import DRIVER
from tests import ROOT

pytestmark = pytest.mark.faults

HOLD = "import sys, time; from pipeline.storage.driver_lock import driver_lock; from pipeline.storage.folder import Folder\n"
HOLD += "with driver_lock(Folder.open(sys.argv[1])): print('held', flush=True); time.sleep(600)"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A folder that is treated like an object store, with quick heartbeats."""
    for name, seconds in (("BEAT_SECONDS", 0.02), ("SETTLE_SECONDS", 0.02)):
        monkeypatch.setattr(lock_module, name, seconds)
    folder = Folder(fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "run", "s3://bucket/run")
    folder.filesystem.create_dir("run")
    return folder


def test_a_local_run_has_one_driver_and_a_killed_one_leaves_it_free(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path / "run"))
    holder = subprocess.Popen([sys.executable, "-c", HOLD, folder.path], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(Driven, match=rf"worked on by process {holder.pid} on .*: wait for it, or give another --run"), driver_lock(folder):
        pass
    holder.kill()
    holder.wait()
    with driver_lock(folder):
        assert folder.names() == []  # no file that a stage could take for its own
    with driver_lock(folder):
        pass


def other_driver(store: Folder, seconds_ago: float = 0) -> None:
    store.write(DRIVER, json.dumps({"id": "other", "who": "process 1 on elsewhere", "alive": time.time() - seconds_ago}).encode())


def alive(store: Folder) -> float:
    """Return the time of the driver's last heartbeat; wait for one that is just being written."""
    for _ in range(1000):
        try:
            return float(json.loads(store.read(DRIVER))["alive"])
        except ValueError:
            time.sleep(0.001)
    raise AssertionError("never a whole beat")


def test_a_store_has_one_driver_for_as_long_as_it_is_alive(store: Folder) -> None:
    with driver_lock(store):
        first = alive(store)
        while alive(store) == first:  # or the test's own time limit
            time.sleep(0.01)
        with pytest.raises(Driven, match=r"s3://bucket/run .* alive \d+ s ago.*run this again in \d+ s"), driver_lock(store):
            pass
    assert not store.exists(DRIVER)
    with driver_lock(store):
        pass


def test_a_driver_that_is_silent_for_long_is_dead(store: Folder) -> None:
    other_driver(store, lock_module.DEAD_SECONDS - 10)
    with pytest.raises(Driven, match="process 1 on elsewhere"), driver_lock(store):
        pass
    other_driver(store, lock_module.DEAD_SECONDS + 1)
    with driver_lock(store):
        assert time.time() - alive(store) < lock_module.DEAD_SECONDS


class Stopped(Exception):
    pass


@pytest.fixture
def sigterm_stops() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("sigterm_stops")
def test_a_driver_that_was_taken_for_dead_stops_and_leaves_the_other_alone(store: Folder) -> None:
    with pytest.raises(Stopped), driver_lock(store):  # noqa: PT012
        other_driver(store)
        for _ in range(3000):  # a heartbeat that was on its way may arrive later
            time.sleep(0.02)
            if json.loads(store.read(DRIVER) or b"{}").get("id") != "other":
                other_driver(store)
    assert json.loads(store.read(DRIVER))["id"] == "other"


@pytest.mark.usefixtures("sigterm_stops")
def test_a_driver_that_lost_its_run_is_told_until_it_leaves_and_closes_in_peace(store: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "AGAIN_SECONDS", 0.05)
    told, closed = 0, False
    with pytest.raises(Stopped), driver_lock(store) as leaving:  # noqa: PT012
        try:
            while True:
                try:
                    while True:
                        if json.loads(store.read(DRIVER) or b"{}").get("id") != "other":
                            other_driver(store)
                        time.sleep(0.01)
                except Stopped:  # as when Python runs a destructor
                    told += 1
                    if told == 3:
                        raise
        finally:
            leaving.set()
            time.sleep(0.5)
            closed = True
    assert closed


def test_of_two_that_start_together_one_stays(store: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: other_driver(store))
    with pytest.raises(Driven, match="process 1 on elsewhere, who started at the same time"), driver_lock(store):
        pass
    assert json.loads(store.read(DRIVER))["id"] == "other"


def test_without_locks_a_local_folder_is_held_like_a_store(tmp_path: Path, store: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*arguments: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    folder = Folder.open(str(tmp_path / "local"))
    with driver_lock(folder), pytest.raises(Driven, match=r"alive \d+ s ago"), driver_lock(folder):
        pass
