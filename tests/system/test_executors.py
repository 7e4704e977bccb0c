"""One protocol, two ways to run it: the same bytes from Ray and from this process, with one rank."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.commands import ALONE, Smoke, finish

pytestmark = pytest.mark.ray


def weights(run: Path) -> list[dict[str, Any]]:
    """Every checkpoint with its hash, and without the time it took."""
    entries = json.loads((run / "surrogate" / "checkpoints.json").read_text())["checkpoints"]
    return [{**entry, "metrics": {**entry["metrics"], "seconds": None, "waiting_seconds": None}} for entry in entries]


def files(run: Path, pattern: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(run.glob(pattern))}


def outcomes(run: Path) -> dict[str, dict[str, Any]]:
    """The outcome of every victim but the time it took."""
    found = {name: json.loads(data)["content"] for name, data in files(run, "victim/*seed0.json").items()}
    return {name: {entry: value for entry, value in content.items() if not entry.endswith("seconds")} for name, content in found.items()}


def test_weights_shards_and_results_are_the_same(smoke_run: Smoke, smoke_run_alone: Smoke) -> None:
    ray, alone = smoke_run.folder, smoke_run_alone.folder
    assert len(weights(alone)) == 2
    assert weights(alone) == weights(ray)
    for pattern, count in {"pack/*.tar": 6, "protect/*.tar": 4, "protect/prepared/*.pt": 1}.items():
        assert len(files(alone, pattern)) == count
        assert files(alone, pattern) == files(ray, pattern)
    assert len(outcomes(alone)) == 2
    assert outcomes(alone) == outcomes(ray)


def test_one_goes_on_with_the_training_of_the_other(smoke_run: Smoke, tmp_path: Path) -> None:
    before, run = smoke_run.folder, tmp_path / "run"
    shutil.copytree(before / "pack", run / "pack")
    shutil.copytree(before / "surrogate" / "epoch_0000", run / "surrogate" / "epoch_0000")
    shutil.copy(before / "surrogate" / "started.json", run / "surrogate")
    began = (run / "surrogate" / "epoch_0000" / "weights.pt").stat().st_mtime_ns
    code, _, err = finish("--run", str(run), *ALONE, "--stages", "surrogate")
    assert code == 0, err
    assert weights(run) == weights(before)
    assert (run / "surrogate" / "epoch_0000" / "weights.pt").stat().st_mtime_ns == began
