"""The kernels of a release on a GPU: measured once, and the same for all shards and starts."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.work import Capacity
from pipeline.config.schema import RunConfig
from pipeline.protection import kernel_choice
from pipeline.protection.checkpoints import Ensemble, choose, read_index
from pipeline.protection.kernel_choice import Pace, decide, faster, measure
from pipeline.storage.folder import Folder
from pipeline.storage.layout import KERNELS
from pipeline.storage.stage import Manifest
from sep.choices import Kernels
from tests.fixtures import finished_run
from tests.fixtures.executors import LOCAL


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Folder]:
    return finished_run.write(tmp_path_factory.mktemp("run"), ("pack", "surrogate"))


@pytest.fixture
def graphs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled kernels whose graph is recorded and run, because to compile it for a CPU takes minutes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


def ensemble_of(folder: Folder, *, gpu: bool = False) -> Ensemble:
    return Ensemble(folder, choose(read_index(folder), 2), gpu=gpu)


def decided(written: tuple[RunConfig, Folder], out: Path, kernels: Kernels, **more: Any) -> Kernels:
    config, folder = written
    protect, shards = replace(config.protect, kernels=kernels, precision="float32"), Manifest.load(folder, "pack").shards["train"]
    return decide(Folder.open(str(out)), protect, ensemble_of(folder, **more), shards, LOCAL, Capacity(), workers=1)


def test_a_compilation_has_to_pay() -> None:
    paces: dict[Kernels, Pace] = {"fused": Pace(1, 0.010), "compiled": Pace(61, 0.008)}
    assert faster(paces, calls=29_000) == "fused"
    assert faster(paces, calls=31_000) == "compiled"
    assert faster({"fused": Pace(1, 1)}, calls=10**6) == "fused"


def test_without_a_gpu_and_where_kernels_are_named_nothing_is_measured(written: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    asked: tuple[Kernels, ...] = ("auto", "plain", "fused", "compiled")
    assert [decided(written, tmp_path, kernels) for kernels in asked] == ["fused", "plain", "fused", "compiled"]
    assert decided(written, tmp_path, "plain", gpu=True) == "plain"
    assert list(tmp_path.iterdir()) == []


def test_a_measurement_is_kept_for_later_starts(
    written: tuple[RunConfig, Folder], tmp_path: Path, graphs_alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, in the place of the GPU."""
    monkeypatch.setattr(Ensemble, "device", torch.device("cpu"))
    monkeypatch.setattr(kernel_choice, "CALLS", 1)
    chosen = decided(written, tmp_path, "auto", gpu=True)
    kept = json.loads((tmp_path / KERNELS).read_text())
    assert kept["kernels"] == chosen
    assert kept["seconds"].keys() == {"fused", "compiled"}
    assert all(pace["further"] > 0 and pace["first"] > 0 for pace in kept["seconds"].values())
    other = "fused" if chosen == "compiled" else "compiled"
    (tmp_path / KERNELS).write_text(json.dumps({**kept, "kernels": other}))
    assert decided(written, tmp_path, "auto", gpu=True) == other


def test_a_machine_that_cannot_compile_has_the_others(
    written: tuple[RunConfig, Folder], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def without(*_: object, **__: object) -> None:
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(torch, "compile", without)
    config, folder = written
    shard = Manifest.load(folder, "pack").shards["train"][0]
    assert measure(replace(config.protect, precision="float32"), ensemble_of(folder), shard).keys() == {"fused"}
    assert "without compiled kernels, which this machine cannot make: RuntimeError: no C compiler" in caplog.text
