"""What a trial leaves, read back whole; of many classes, in a file that is no longer than it has to be."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.storage.folder import Folder
from pipeline.training import trial_records

OUTCOME = {"network": "resnet8", "seed": 0, "loss_per_epoch": [2.0, 1.5], "other_accuracy": None, "made_from": "these"}


def test_an_outcome_is_read_back_and_a_table_has_a_line_for_each_row() -> None:
    table = [[7 * row + column for column in range(100)] for row in range(100)]
    data = trial_records.encode({**OUTCOME, "confusion": table})
    assert json.loads(data) == {**OUTCOME, "confusion": table}
    assert data == trial_records.encode({"confusion": table, **OUTCOME})
    assert len(data.splitlines()) == 2 + len(OUTCOME) + 2 + len(table)
    assert len(data) < 1.3 * len(json.dumps(table, separators=(",", ":")))


def test_only_what_was_made_from_the_same_counts(tmp_path: Path) -> None:
    folder = Folder.open(str(tmp_path))
    trial_records.write(folder, "trial", OUTCOME)
    assert trial_records.read(folder, "trial", "these") == OUTCOME
    assert trial_records.read(folder, "trial", "others") is None
    assert trial_records.read(folder, "none", "these") is None
    folder.write("cut.json", trial_records.encode(OUTCOME)[:-9])
    assert trial_records.read(folder, "cut", "these") is None
    trial_records.write(folder, "diverged", {**OUTCOME, "loss_per_epoch": [float("nan")]})
    assert trial_records.read(folder, "diverged", "these") is None
