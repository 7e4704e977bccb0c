"""The files and the record of each epoch of a training. All executors share the format, so each can resume the other's training.

An epoch is a folder `epoch_0000` with the loop's files and, written last, a record of their digests and of the metrics. An epoch without
a whole record counts as not trained.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cluster.deadline import Deadline, TimeIsUp

log = logging.getLogger(__name__)

Metrics = dict[str, Any]
RECORD = "epoch.json"


class Storage(Protocol):
    """A folder on a pyarrow filesystem, in which a file appears whole or not at all."""

    @property
    def filesystem(self) -> Any:
        """The pyarrow filesystem."""

    @property
    def path(self) -> str:
        """The absolute path of the folder on it."""

    def read(self, name: str) -> bytes:
        """Return a file's bytes; raises FileNotFoundError if it does not exist."""

    def write(self, name: str, data: bytes) -> None:
        """Put a file in place."""


def keep(folder: Storage, epoch: int, metrics: Mapping[str, Any], files: Mapping[str, bytes]) -> Metrics:
    """Write the files of an epoch and its record. Return the recorded metrics, with the epoch among them.

    Raises:
        OSError: storage refused.
    """
    row = {"epoch": epoch, **metrics}
    for name, data in files.items():
        folder.write(f"{_place(epoch)}/{name}", data)
    record = {"metrics": row, "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}}
    folder.write(f"{_place(epoch)}/{RECORD}", json.dumps(record).encode())
    return row


def kept(folder: Storage) -> list[Metrics]:
    """Return one row of metrics per recorded epoch, from the first to the last before a gap.

    Raises:
        OSError: storage refused.
    """
    return [record["metrics"] for record in _records(folder)]


def _records(folder: Storage) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        try:
            record = json.loads(folder.read(f"{_place(len(found))}/{RECORD}"))
            if record["metrics"]["epoch"] != len(found) or not record["files"]:
                return found
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return found
        found.append(record)


def _latest(folder: Storage) -> dict[str, bytes]:
    """Return the files of the last epoch that match its record; none without such an epoch."""
    for record in reversed(_records(folder)):
        epoch = record["metrics"]["epoch"]
        try:
            files = {name: folder.read(f"{_place(epoch)}/{name}") for name in record["files"]}
        except FileNotFoundError:
            files = {}
        if {name: hashlib.sha256(data).hexdigest() for name, data in files.items()} == record["files"]:
            return files
        log.warning("%s/%s is damaged, and is trained again", folder.path, _place(epoch))
    return {}


def _place(epoch: int) -> str:
    return f"epoch_{epoch:04d}"


@dataclass(frozen=True)
class Worker(ABC):
    """One rank of a training: its place in the group, and its way to save an epoch.

    Attributes:
        rank: of this process.
        size: ranks of the group.
        folder: of the saved epochs.
        on_epoch: called with the metrics of each epoch, on rank 0.
        deadline: after which no epoch is begun.
    """

    rank: int
    size: int
    folder: Storage
    on_epoch: Callable[[Metrics], None]
    deadline: Deadline

    @property
    @abstractmethod
    def device(self) -> Any:
        """The torch device of this rank."""

    @abstractmethod
    def distribute(self, network: Any) -> Any:
        """Return the network on this rank's device, its gradients averaged over the ranks."""

    def out_of_time(self) -> bool:
        """Return whether it is too late for another epoch; the same on every rank."""
        return self.deadline.passed()

    @contextmanager
    def resumed(self) -> Iterator[Path | None]:
        """Yield a local folder with the files of the last recorded epoch; None at the beginning."""
        files = _latest(self.folder)
        if not files:
            yield None
            return
        with tempfile.TemporaryDirectory() as local:
            for name, data in files.items():
                Path(local, name).write_bytes(data)
            yield Path(local)

    def report(self, epoch: int, metrics: Metrics, files: dict[str, bytes]) -> None:
        """Save an epoch. All ranks call this; only the files and metrics of rank 0 count.

        Raises:
            TimeIsUp: the epoch is saved, and no further one may begin.
        """
        if self.rank == 0:
            self.on_epoch(keep(self.folder, epoch, metrics, files))
        if self.out_of_time():
            raise TimeIsUp
