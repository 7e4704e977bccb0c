"""Training states: read back whole or not at all, and saved only as often as is cheap."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from pipeline.storage.folder import Folder
from pipeline.training.states import StateFile

STATE = {"network": {"weight": torch.arange(5000.0)}, "epochs": 3, "losses": [2.0, 1.5, 1.25]}


def test_what_was_saved_is_read_back_until_the_training_is_finished(tmp_path: Path) -> None:
    file = StateFile(Folder.open(str(tmp_path)), "trial", "these")
    assert file.read() is None
    file.write(STATE)
    found = StateFile(Folder.open(str(tmp_path)), "trial", "these").read()
    assert found is not None
    assert torch.equal(found["network"]["weight"], STATE["network"]["weight"])  # type: ignore[index]
    assert (found["epochs"], found["losses"]) == (3, [2.0, 1.5, 1.25])
    assert StateFile(Folder.open(str(tmp_path)), "trial", "others").read() is None
    file.remove()
    assert file.read() is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", [0, 100, 0.3, 0.5, 0.7, -30])
@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_a_damaged_state_does_not_count(tmp_path: Path, place: float, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    file = StateFile(Folder.open(str(tmp_path)), "trial", "these")
    file.write(STATE)
    path = tmp_path / "trial.pt"
    data = bytearray(path.read_bytes())
    at = int(place * len(data)) if isinstance(place, float) else place % len(data)
    data[at] ^= 255
    path.write_bytes({"flipped": data, "cut": data[:at]}[damage])
    with caplog.at_level("INFO"):
        found = file.read()
    assert found is None
    assert "trial.pt does not count" in caplog.text


def test_saving_takes_a_twentieth_of_the_time_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    class Slow(Folder):
        def write(self, name: str, data: object) -> None:
            nonlocal now
            now += 3

    folder = Folder.open(str(tmp_path))
    file = StateFile(Slow(folder.filesystem, folder.path, folder.uri), "trial", "these")
    assert not file.due
    now = 20
    assert file.due
    file.write(STATE)
    now = 23 + 59
    assert not file.due
    now = 23 + 60
    assert file.due
