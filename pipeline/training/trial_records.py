"""The record of a finished trial, with its curves and the confusion table of the test images."""

from __future__ import annotations

from typing import Any

from pipeline.storage.finished_pieces import Piece, read_piece, write_piece
from pipeline.storage.folder import Folder
from pipeline.storage.layout import trial_record


def write(folder: Folder, name: str, outcome: dict[str, Any]) -> None:
    """Write the outcome of the trial `name`; its entry `made_from` is the digest of everything that decided it."""
    content = {entry: value for entry, value in outcome.items() if entry != "made_from"}
    write_piece(folder, trial_record(name), Piece(outcome["made_from"], content))


def read(folder: Folder, name: str, made_from: str) -> dict[str, Any] | None:
    """Return the outcome of a finished trial, or None if it has to be trained (again): see `read_piece`."""
    piece = read_piece(folder, trial_record(name), made_from)
    return None if piece is None else {**piece.content, "made_from": made_from}
