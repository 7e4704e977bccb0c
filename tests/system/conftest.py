"""Whole runs of the smoke preset that several files look at."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.commands import ALONE, Smoke, whole


@pytest.fixture(scope="session")
def ray_folder() -> Iterator[Path]:
    """A folder with a path short enough for Ray's sockets, where the cluster of the whole run is to keep its files."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory, ray_folder: Path) -> Smoke:
    """The run that others are held to, on Ray."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_TMPDIR", str(ray_folder))
        return whole(tmp_path_factory.mktemp("runs") / "smoke", "--workers", "1")


@pytest.fixture(scope="session")
def smoke_run_alone(tmp_path_factory: pytest.TempPathFactory) -> Smoke:
    """The same in one process."""
    return whole(tmp_path_factory.mktemp("runs") / "alone", *ALONE)
