"""The state of an unfinished training, as bytes and as a file beside its outcome."""

from __future__ import annotations

import io
import logging
import time
import zipfile
from collections.abc import Collection
from typing import Any

import torch

from pipeline.storage.folder import Folder
from pipeline.storage.layout import STATE
from sep.fitting import State

log = logging.getLogger(__name__)

SAVE_SECONDS = 20.0  # least time between two saves: the work that a kill can lose
LEAST_WORK = 20  # training between two saves, as a multiple of the time that a save takes


def to_bytes(state: dict[str, Any]) -> bytes:
    """Return tensors and plain values as the bytes of a torch file."""
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


def remove_others(folder: Folder, names: Collection[str]) -> None:
    """Remove the states of all but the named trainings: the others have finished, or nobody asks for them any more."""
    for file in folder.names():
        if file.endswith(STATE) and file.removesuffix(STATE) not in names:
            folder.remove(file)


class StateFile:
    """The state of one training as `<name>.pt`, from its first save until the training is finished."""

    def __init__(self, folder: Folder, name: str, made_from: str) -> None:
        """Name the file, which need not exist yet.

        Args:
            folder: of the training's outcome.
            name: of the training.
            made_from: digest of everything that decides the outcome; only a state with the same one counts.
        """
        self._folder, self._file, self._made_from = folder, f"{name}{STATE}", made_from
        self._due = time.monotonic() + SAVE_SECONDS

    def read(self) -> State | None:
        """Return the last state, on the CPU; None if the file is missing, damaged or has another `made_from`."""
        try:
            data = self._folder.read(self._file)
        except FileNotFoundError:
            return None
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:  # the format of torch, which does not compare its checksums
                state: State = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True) if archive.testzip() is None else {}
        except Exception:  # its type depends on where the damage is
            state = {}
        if state.get("made_from") == self._made_from:
            return state
        log.info("%s/%s does not count: it is damaged, or of another configuration", self._folder.uri, self._file)
        return None

    @property
    def due(self) -> bool:
        """True if it is time to save the next state."""
        return time.monotonic() >= self._due

    def write(self, state: State) -> None:
        """Save a state over the last one."""
        begun = time.monotonic()
        self._folder.write(self._file, to_bytes({**state, "made_from": self._made_from}))
        ended = time.monotonic()
        self._due = ended + max(SAVE_SECONDS, LEAST_WORK * (ended - begun))

    def remove(self) -> None:
        """Remove the file of a finished training."""
        self._folder.remove(self._file)
