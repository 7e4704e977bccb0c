"""Finished pieces: one counts only as it was recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.storage.finished_pieces import Piece, read_piece, write_piece
from pipeline.storage.folder import Folder
from pipeline.storage.records import digest, sha256

PIECE = Piece("this", {"accuracy": 12.5, "table": [[1, 2], [3, 4]]}, {"own/a.bin": sha256(b"a"), "b.bin": sha256(b"b")})


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    found = Folder.open(str(tmp_path))
    found.write("own/a.bin", b"a")
    found.write("b.bin", b"b")
    write_piece(found, "records/piece.json", PIECE)
    return found


def test_a_whole_piece_is_read_back(folder: Folder) -> None:
    assert read_piece(folder, "records/piece.json", "this") == PIECE
    assert read_piece(folder, "records/piece.json", None) == PIECE
    assert read_piece(folder, "records/piece.json", "something else") is None
    assert read_piece(folder, "records/other.json", "this") is None


@pytest.mark.parametrize("name", ["own/a.bin", "b.bin"])
def test_a_file_that_is_missing_or_altered_takes_the_piece_with_it(folder: Folder, name: str) -> None:
    folder.write(name, b"c")
    assert read_piece(folder, "records/piece.json", "this") is None
    folder.remove(name)
    assert read_piece(folder, "records/piece.json", "this") is None
    assert read_piece(folder, "records/piece.json", "this", check_files=False) == PIECE


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"1", b"\xff\xfe", b'{"version": 1}'])
def test_a_damaged_record_counts_for_nothing(folder: Folder, content: bytes) -> None:
    folder.write("records/piece.json", content)
    assert read_piece(folder, "records/piece.json", None) is None


@pytest.mark.parametrize(
    ("changes", "signed"), [({"content": {"accuracy": 99.0}}, False), ({"made_from": "that"}, False), ({"version": 2}, True)]
)
def test_an_altered_record_and_one_of_another_version_count_for_nothing(folder: Folder, changes: dict[str, Any], signed: bool) -> None:
    record = json.loads(folder.read("records/piece.json")) | changes
    if signed:
        record["sha256"] = digest({name: value for name, value in record.items() if name != "sha256"})
    folder.write("records/piece.json", json.dumps(record).encode())
    assert read_piece(folder, "records/piece.json", None) is None
