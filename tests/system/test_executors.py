"""One protocol, two ways to run it: the same bytes from Ray and from this process, with one rank and one thread."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from cluster.executor import Executor
from cluster.resources import Resources
from pipeline.config.presets import preset
from pipeline.config.schema import RunConfig
from pipeline.stages import surrogate
from pipeline.stages.sequence import run_stages
from pipeline.storage.folder import Folder
from pipeline.tracking.tracker import NoTracker
from tests.fixtures.executors import LOCAL, RAY

pytestmark = pytest.mark.ray


class Runs(NamedTuple):
    """The folders of two runs of one configuration."""

    local: Path
    ray: Path


def execute(folder: Path, executor: Executor) -> RunConfig:
    config = replace(preset("smoke"), run=str(folder), workers=1, stages=("pack", "surrogate", "protect", "victim"))
    run_stages(config, Folder.open(config.run), NoTracker(), executor, config.needed_stages)
    return config


@pytest.fixture(scope="module")
def runs(ray_2_cpus: Resources, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """A run of each executor."""
    folder, threads = tmp_path_factory.mktemp("executors"), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Resources, "cpus_for", lambda *_: 1)
        execute(folder / "local", LOCAL)
        execute(folder / "ray", RAY)
        yield Runs(folder / "local", folder / "ray")
    torch.set_num_threads(threads)


def weights(run: Path) -> list[dict[str, Any]]:
    """Every checkpoint with its hash, and without the time it took."""
    entries = json.loads((run / "surrogate" / "checkpoints.json").read_text())["checkpoints"]
    return [{**entry, "metrics": {**entry["metrics"], "seconds": None}} for entry in entries]


def files(run: Path, pattern: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(run.glob(pattern))}


def outcomes(run: Path) -> dict[str, dict[str, Any]]:
    """The outcome of every victim but the time it took."""
    found = {name: json.loads(data)["content"] for name, data in files(run, "victim/*seed0.json").items()}
    return {name: {entry: value for entry, value in content.items() if entry != "seconds"} for name, content in found.items()}


def test_weights_shards_and_results_are_the_same(runs: Runs) -> None:
    assert len(weights(runs.local)) == 2
    assert weights(runs.local) == weights(runs.ray)
    for pattern, count in {"pack/*.tar": 6, "protect/*.tar": 4, "protect/prepared/*.pt": 1}.items():
        assert len(files(runs.local, pattern)) == count
        assert files(runs.local, pattern) == files(runs.ray, pattern)
    assert len(outcomes(runs.local)) == 2
    assert outcomes(runs.local) == outcomes(runs.ray)


def test_one_goes_on_with_the_training_of_the_other(runs: Runs, tmp_path: Path) -> None:
    shutil.copytree(runs.ray / "pack", tmp_path / "pack")
    for name in ("started.json", "epoch_0000"):
        copy = shutil.copytree if name.startswith("epoch") else shutil.copy
        (tmp_path / "surrogate").mkdir(exist_ok=True)
        copy(runs.ray / "surrogate" / name, tmp_path / "surrogate" / name)
    began = (tmp_path / "surrogate" / "epoch_0000" / "weights.pt").stat().st_mtime_ns
    config = replace(preset("smoke"), run=str(tmp_path), workers=1)
    surrogate.execute(config, Folder.open(config.run), LOCAL)
    assert weights(tmp_path) == weights(runs.ray)
    assert (tmp_path / "surrogate" / "epoch_0000" / "weights.pt").stat().st_mtime_ns == began
