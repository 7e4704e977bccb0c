"""Pieces of work that are kept: files that are there whole or not at all, what a piece cost, and when to begin no further one."""

from __future__ import annotations

import json
import logging
import os
import resource
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)


class TimeIsUp(Exception):
    """The time given is used; everything finished is kept."""


class Clock:
    """How long this process may go on, and whether it has begun with any work."""

    FIRST_SECONDS = 60  # what the first piece of a stage may take before its length is known: kernels are chosen or compiled in it

    def __init__(self, minutes: float | None) -> None:
        """Start it; without a limit if none is given."""
        self._end = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
        self._begun = False

    def begin(self) -> None:
        """Begin with the pieces of a stage, or not; a start's first piece always may, so that every start does at least one.

        Raises:
            TimeIsUp: the time left is too short for a piece of unknown length.
        """
        if self._begun:
            self.check(self.FIRST_SECONDS)
        self._begun = True

    def over(self, seconds: float) -> bool:
        """Whether another piece that takes `seconds`, as the last one did, would end too late; asked after each piece."""
        return time.monotonic() + seconds > self._end

    def check(self, seconds: float) -> None:
        """Go on, or not.

        Raises:
            TimeIsUp: it is over.
        """
        if self.over(seconds):
            raise TimeIsUp


@contextmanager
def measured(device: torch.device) -> Iterator[dict[str, float]]:
    """What the block costs, once it has ended: `seconds`, and `memory_gib`, the most held at a time.

    The memory is that of torch's tensors on a GPU, and of the whole process since its start otherwise.
    """
    cost: dict[str, float] = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    begun = time.monotonic()
    yield cost
    cost["seconds"] = time.monotonic() - begun
    if device.type == "cuda":
        cost["memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    else:
        cost["memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


def _put(path: Path, write: Callable[[Path], object]) -> None:
    """Build a file under another name and move it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_name(f".partial-{path.name}")
    write(building)
    os.replace(building, path)


def save(path: Path, content: dict[str, Any]) -> None:
    """Keep tensors and plain values in a file."""
    _put(path, lambda building: torch.save(content, building))


def load(path: Path) -> dict[str, Any] | None:
    """What `save` kept, on the CPU; None where the file is missing or, which is logged, damaged."""
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as archive:  # as torch writes it; torch itself compares no checksum
            if archive.testzip() is None:
                content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
                return content
    except (zipfile.BadZipFile, RuntimeError, ValueError, EOFError, OverflowError):
        pass  # which of them, depends on where the damage is
    log.warning("%s is damaged and does not count", path)
    return None


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Keep plain values in a file that people read."""
    text = json.dumps(content, indent=2) + "\n"
    _put(path, lambda building: building.write_text(text))


def load_json(path: Path) -> dict[str, Any] | None:
    """What `save_json` kept; None where there is none.

    Raises:
        ValueError: somebody else wrote the file.
    """
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: delete it and run the same command again ({error})") from error
    return content
