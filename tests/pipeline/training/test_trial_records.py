"""Records of trials: read back whole, and compact even for many classes."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.storage.folder import Folder
from pipeline.training import trial_records

OUTCOME = {"network": "resnet8", "seed": 0, "loss_per_epoch": [2.0, 1.5], "other_accuracy": None, "made_from": "these"}


def test_an_outcome_is_read_back_where_it_was_made_from_the_same(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    trial_records.write(folder, "trial", OUTCOME)
    assert trial_records.read(folder, "trial", "these") == OUTCOME
    assert trial_records.read(folder, "trial", "others") is None
    assert trial_records.read(folder, "none", "these") is None


def test_a_table_has_a_line_for_each_row(tmp_path: Path) -> None:
    folder, table = Folder.open(str(tmp_path)), [[7 * row + column for column in range(100)] for row in range(100)]
    trial_records.write(folder, "trial", {**OUTCOME, "confusion": table})
    data = folder.read("trial.json")
    assert json.loads(data)["content"]["confusion"] == table
    assert sum(line.strip().rstrip(",") in map(json.dumps, table) for line in data.decode().splitlines()) == len(table)
    assert len(data) < 1.3 * len(json.dumps(table))
