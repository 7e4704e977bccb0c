"""The main job in one process, where Ray is not the point: what stops it, and what a kill in the middle leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixtures.commands import ALONE, Smoke, goes_on_after_a_kill, refused


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--data", "/no/such/folder"], "/no/such/folder"),
        (["--pack.size", "28", "--victim.networks", "resnet8", "vgg16-bn"], "victim.networks: vgg16-bn"),
    ],
)
def test_what_a_user_can_mend_ends_in_one_line_and_trains_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], word: str
) -> None:
    assert word in refused(capsys, "--run", str(tmp_path / "run"), *ALONE, *arguments)
    assert not (tmp_path / "run" / "surrogate").exists()


def test_changed_setting_stops_with_its_name(smoke_run_alone: Smoke, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "--run", str(smoke_run_alone.folder), *ALONE, "--protect.eps-levels", "4")
    assert "protect.eps_levels: 8 -> 4" in said
    assert "--overwrite" in said


@pytest.mark.faults
def test_killed_driver_goes_on_to_the_same_bytes(smoke_run_alone: Smoke, tmp_path: Path, seconds_lost: Callable[[float], None]) -> None:
    """What every change is held to: a training half done, and everything after it."""
    goes_on_after_a_kill(smoke_run_alone, "surrogate: .* epoch 1", tmp_path / "run", seconds_lost, *ALONE)
