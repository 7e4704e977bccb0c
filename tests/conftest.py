"""Fixtures, named after what they give.

A fixture imports what it needs itself, so that tests of `sep` start where nothing but torch and pytest is installed.
"""

from __future__ import annotations

import gc
import itertools
import logging
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tests import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from cluster.resources import Resources
    from pipeline.config.schema import RunConfig
    from pipeline.storage.folder import Folder
    from sep.countermeasures.countermeasure import Countermeasure
    from tests.fixtures import s3_servers

_numbers = itertools.count()


@pytest.fixture(scope="session")
def ray_2_cpus() -> Iterator[Resources]:
    """A Ray cluster embedded in the tests' process and shared by them all, its CPUs divided between two workers."""
    from cluster import session

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)  # never the developer's own cluster
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)  # workers import what tests send them
        yield session.connect(2)
        session.close()


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Folder]:
    """A packed run with three checkpoints of networks that really differ."""
    from pipeline.config.presets import preset
    from pipeline.stages import pack
    from pipeline.storage.folder import Folder
    from tests.fixtures import packed_run
    from tests.fixtures.executors import LOCAL

    config = replace(preset("smoke"), run=str(tmp_path_factory.mktemp("packed")))
    config = replace(config, surrogate=replace(config.surrogate, epochs=3))
    folder = Folder.open(config.run)
    pack.execute(config, folder, LOCAL)
    packed_run.write_checkpoints(folder, ("resnet8",))
    return config, folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[s3_servers.Server]:
    """An S3-speaking server, a process of its own on this machine."""
    from tests.fixtures import s3_servers

    with s3_servers.moto() as server:
        yield server


@pytest.fixture
def s3_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that has the key of that server, and nothing of the developer's own."""
    from tests.fixtures import s3_servers

    for name in s3_servers.FOREIGN:
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_servers.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def s3_bucket(s3_server: s3_servers.Server, s3_credentials: None) -> str:
    """The name of an empty bucket on that server."""
    from pyarrow import fs

    name = f"bucket-{next(_numbers)}"
    fs.S3FileSystem(region="us-east-1", endpoint_override=s3_server.url, request_timeout=60, allow_bucket_creation=True).create_dir(name)
    return name


@pytest.fixture(scope="session")
def sep_data() -> Path:
    """The folder of real images, from SEP_DATA; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("SEP_DATA", ROOT.parent / "shared" / "data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}: set SEP_DATA to a folder that has cifar10/ and tiny-imagenet-20/")
    return folder


@pytest.fixture
def put_countermeasure() -> Iterator[Callable[[str, Countermeasure], None]]:
    """Puts another countermeasure under a name of the table until the test ends; names are parsed once, and again after a change."""
    from sep.countermeasures.registry import COUNTERMEASURES, plan

    with pytest.MonkeyPatch.context() as patch:

        def put(name: str, countermeasure: Countermeasure) -> None:
            patch.setitem(COUNTERMEASURES, name, countermeasure)
            plan.cache_clear()

        yield put
    plan.cache_clear()


SECONDS_LOST = "seconds lost"


@pytest.fixture
def seconds_lost(record_property: Callable[[str, object], None]) -> Callable[[float], None]:
    """Notes how much longer it took than without the fault, for the table at the end: a measurement, never a condition."""
    return lambda seconds: record_property(SECONDS_LOST, round(seconds, 1))


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Choose the device of `tests/gpu`, and accept the project's time limit where its plugin is not installed."""
    if not pluginmanager.hasplugin("timeout"):
        parser.addini("timeout", "seconds a test may take; kept by pytest-timeout alone")
    parser.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="device of tests/gpu (default: cpu)")
    parser.addoption("--no-values", action="store_true", help="tests/gpu: hold no value to anything, for a device that computes nothing")


def pytest_sessionstart() -> None:
    """Let processes that tests start hear an interruption: what a shell runs in the background ignores it, and so do its children.

    This process computes with one thread, threads of its children wait without turning, and Ray's workers do not give way: others test
    beside it.
    """
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("RAY_worker_niceness", "0")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with whole runs, whose files take longest: then two processes end at the same time."""
    items.sort(key=lambda item: "system" not in item.path.parts)


def pytest_collection_finish() -> None:
    """Keep libraries and collected tests out of every later garbage collection, which takes a second with them."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let the interpreter clear up everything at its end, or libraries complain of leaks."""
    gc.unfreeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the faults have cost, a line for each."""
    lost = [
        (test.nodeid, cost)
        for test in terminalreporter.stats.get("passed", [])
        for name, cost in test.user_properties
        if name == SECONDS_LOST
    ]
    if lost:
        terminalreporter.section("seconds lost to faults, against a run without them")
        for name, cost in lost:
            terminalreporter.write_line(f"{cost:7.1f}  {name}")


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """An entry point that ran in this process logs to the stream of its own test, which is closed afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser for the pages of a module."""
    from tests.fixtures import browser

    with browser.chromium() as opened:
        yield opened
