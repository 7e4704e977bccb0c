"""One rank's training of a surrogate, in this process: the files it saves, and how it resumes from them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cluster.epochs import Worker
from pipeline.storage.layout import RESUME, WEIGHTS
from pipeline.storage.records import sha256
from pipeline.storage.stage import Manifest
from pipeline.training import surrogate_loop
from pipeline.training.networks import build_network
from pipeline.training.surrogate_loop import SurrogateTask, loop
from sep.fitting import EpochResult
from tests.fixtures import finished_run


class Alone:
    """The only rank of a training. It stops after some epochs, and resumes the training of another."""

    rank, size, device = 0, 1, torch.device("cpu")

    def __init__(self, folder: Path, stop: int = 99, resume: int | None = None) -> None:
        self.folder, self.stop, self.resume = folder, stop, resume
        self.rows: list[dict[str, Any]] = []

    def distribute(self, network: nn.Module) -> nn.Module:
        return network

    @contextmanager
    def resumed(self) -> Iterator[Path | None]:
        yield None if self.resume is None else self.folder / str(self.resume)

    def report(self, epoch: int, metrics: dict[str, Any], files: dict[str, bytes]) -> None:
        (self.folder / str(epoch)).mkdir(exist_ok=True)
        for name, data in files.items():
            (self.folder / str(epoch) / name).write_bytes(data)
        self.rows.append({"epoch": epoch, **{name: value for name, value in metrics.items() if not name.endswith("seconds")}})
        if len(self.rows) == self.stop:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> SurrogateTask:
    """A task of three epochs for a network with dropout."""
    config, folder = finished_run.write(tmp_path_factory.mktemp("run"), ("pack",))
    return SurrogateTask(
        name="mobilenet-v2",
        config=replace(config.surrogate, epochs=3, augmentation="crop-flip"),
        seed=0,
        clean=folder.child("pack"),
        pack=Manifest.load(folder, "pack"),
        memory_limit_mb=2000,
        threads=torch.get_num_threads(),
        cache_gb=0,
    )


def changed(task: SurrogateTask, **settings: Any) -> SurrogateTask:
    return replace(task, config=replace(task.config, **settings))


def run(task: SurrogateTask, worker: Alone) -> list[dict[str, Any]]:
    loop(task, cast(Worker, worker))
    return worker.rows


def test_every_epoch_is_saved_and_a_resumed_training_is_the_same(task: SurrogateTask, tmp_path: Path) -> None:
    whole = run(task, Alone(tmp_path))
    assert [row["epoch"] for row in whole] == [0, 1, 2]
    assert {row["precision"] for row in whole} == {"float32"}
    for row in whole:
        assert sha256((tmp_path / str(row["epoch"]) / WEIGHTS).read_bytes()) == row["sha256"]
    first = Alone(tmp_path, stop=1)
    with pytest.raises(KeyboardInterrupt):
        run(task, first)
    assert first.rows + run(task, Alone(tmp_path, resume=0)) == whole
    assert run(task, Alone(tmp_path, resume=2)) == []


def test_training_through_views_is_another_and_resumes_as_the_same(task: SurrogateTask, tmp_path: Path) -> None:
    plain, task = run(changed(task, epochs=2), Alone(tmp_path)), replace(task, views=("none", "jpeg-10", "noise-4"))
    whole = run(changed(task, epochs=2), Alone(tmp_path))
    assert all(row["sha256"] != other["sha256"] for row, other in zip(whole, plain, strict=True))
    first = Alone(tmp_path, stop=1)
    with pytest.raises(KeyboardInterrupt):
        run(changed(task, epochs=2), first)
    assert first.rows + run(changed(task, epochs=2), Alone(tmp_path, resume=0)) == whole


class Wrapping(Alone):
    """The only rank, which wraps its network for data-parallel training."""

    def distribute(self, network: nn.Module) -> nn.Module:
        return DistributedDataParallel(network)


def test_what_a_group_has_left_any_other_number_of_ranks_can_take(task: SurrogateTask, tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        grouped = run(changed(task, epochs=1), Wrapping(tmp_path))
        build_network(task.name, task.pack).load_state_dict(torch.load(tmp_path / "0" / WEIGHTS, weights_only=True))
        assert "network" not in torch.load(tmp_path / "0" / RESUME, weights_only=True)
        again = run(changed(task, epochs=2), Wrapping(tmp_path, resume=0))
    finally:
        torch.distributed.destroy_process_group()
    assert [row["epoch"] for row in grouped + again] == [0, 1]
    assert [row["epoch"] for row in run(changed(task, epochs=2), Alone(tmp_path, resume=0))] == [1]


def test_the_precision_asked_for_is_used(task: SurrogateTask, tmp_path: Path) -> None:
    (row,) = run(changed(task, epochs=1, precision="bf16"), Alone(tmp_path))
    assert row["precision"] == "bf16"
    weights = torch.load(io.BytesIO((tmp_path / "0" / WEIGHTS).read_bytes()), weights_only=True)
    assert weights["head.weight"].dtype == torch.float32


def test_a_training_that_diverges_says_what_to_do(task: SurrogateTask, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"training diverged in epoch \d .*lower --surrogate\.lr, and run again with --overwrite"):
        run(changed(task, lr=1e12), Alone(tmp_path))


@pytest.mark.parametrize(("others", "finite"), [([2.0, 50.0, 1.0], True), ([2.0, 50.0, 0.0], False), ([float("nan"), 50.0, 0.0], False)])
def test_one_rank_that_diverged_is_known_to_all(others: list[float], finite: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss need not show it: the rank's batch-norm statistics may be the only values that are not finite."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda values: values.add_(torch.tensor(others)))
    mean = surrogate_loop._mean_over_ranks(EpochResult(1.0, 100.0, True), device=torch.device("cpu"), size=2)
    assert mean.finite == finite
    assert mean.accuracy == 75
