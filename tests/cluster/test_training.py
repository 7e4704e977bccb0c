from __future__ import annotations

import io
import os
import pickle
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from cluster.deadline import NEVER, Deadline, TimeIsUp
from cluster.epochs import Metrics, Worker, kept
from cluster.resources import Resources
from cluster.training import train
from cluster.work import TrainingFailed
from pipeline.storage.folder import Folder

STEPS = 4  # per epoch
SIZE = 2  # ranks


@dataclass(frozen=True)
class Task:
    """What the ranks are told, and where one of them is to fail, once."""

    epochs: int
    marker: Path | None = None
    trouble: str = ""


def batch(epoch: int, step: int, rank: int) -> tuple[Tensor, Tensor]:
    """Every rank sees other data, so the result is right only if gradients are averaged."""
    draws = torch.Generator().manual_seed(1000 * epoch + 10 * step + rank)
    inputs = torch.randn(8, 3, generator=draws)
    return inputs, inputs.sum(1, keepdim=True)


def fresh() -> tuple[nn.Module, SGD]:
    torch.manual_seed(0)
    network = nn.Linear(3, 1)
    return network, SGD(network.parameters(), 0.05, momentum=0.9)


def fail_once(task: Task, rank: int, epoch: int, step: int) -> None:
    """In the middle of the third epoch, after two were kept."""
    if task.marker is None or task.marker.exists() or (rank, epoch, step) != (1, 2, 2) or task.trouble == "reported":
        return
    task.marker.touch()
    if task.trouble == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ValueError("labels must be 0..2,\ngot 7")


def loop(task: Task, worker: Worker) -> None:
    network, sgd = fresh()
    distributed = worker.distribute(network)
    first = 0
    with worker.resumed() as kept:
        if kept is not None:
            state = torch.load(kept / "state.pt")
            network.load_state_dict(state["network"])
            sgd.load_state_dict(state["sgd"])
            first = state["epoch"] + 1
    for epoch in range(first, task.epochs):
        for step in range(STEPS):
            fail_once(task, worker.rank, epoch, step)
            inputs, wanted = batch(epoch, step, worker.rank)
            sgd.zero_grad()
            (distributed(inputs) - wanted).square().mean().backward()
            sgd.step()
        stream = io.BytesIO()
        torch.save({"network": network.state_dict(), "sgd": sgd.state_dict(), "epoch": epoch}, stream)
        worker.report(epoch, {"first": first, "size": worker.size}, {"state.pt": stream.getvalue()})
        if task.trouble == "reported" and task.marker and not task.marker.exists() and (worker.rank, epoch) == (1, 2):
            task.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)  # the checkpoint is there, but the controller has not noted it yet


def run(task: Task, folder: Path, deadline: Deadline = NEVER) -> tuple[list[Metrics], list[Metrics]]:
    """The rows of a training in `folder`, and what was told while it ran."""
    told: list[Metrics] = []
    ranks: dict[str, Any] = {"workers": SIZE, "cpus": 1, "gpu": 0}
    place = Folder.open(str(folder)).child("surrogate")
    rows = train(loop, task, what="surrogate", folder=place, **ranks, on_epoch=told.append, deadline=deadline)
    return rows, told


def weights(folder: Path, epoch: int) -> Tensor:
    state = torch.load(folder / "surrogate" / f"epoch_{epoch:04d}" / "state.pt")["network"]
    return torch.cat([state["weight"].flatten(), state["bias"]])


def plain(epochs: int) -> Tensor:
    """The weights after so many epochs of both ranks' batches in one process."""
    network, sgd = fresh()
    for epoch in range(epochs):
        for step in range(STEPS):
            sgd.zero_grad()
            for rank in range(SIZE):
                inputs, wanted = batch(epoch, step, rank)
                ((network(inputs) - wanted).square().mean() / SIZE).backward()
            sgd.step()
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


@pytest.mark.ray
def test_training_that_stopped_goes_on_from_the_last_kept_epoch(ray_2_cpus: Resources, tmp_path: Path) -> None:
    """First after a rank has failed, which is named; then until the time is up, which it is before the ranks have started."""
    task, place = Task(5, tmp_path / "failed", "raises"), Folder.open(str(tmp_path)).child("surrogate")
    with pytest.raises(TrainingFailed, match=r"^surrogate: ValueError: labels must be 0..2, got 7 \(rank 1\)"):
        run(task, tmp_path)
    assert [row["epoch"] for row in kept(place)] == [0, 1]
    for deadline in (Deadline(time.time() + 0.1), Deadline(0)):
        with pytest.raises(TimeIsUp):
            run(task, tmp_path, deadline)
        rows = kept(place)
        assert [row["epoch"] for row in rows] == [0, 1, 2]  # all ranks stopped after the same epoch, and nothing was repeated
        assert [row["first"] for row in rows] == [0, 0, 2]
    assert {row["size"] for row in rows} == {SIZE}
    for epoch in range(3):
        torch.testing.assert_close(weights(tmp_path, epoch), plain(epoch + 1))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["killed", "reported"])
def test_a_killed_rank_costs_no_epoch_and_changes_nothing(
    ray_2_cpus: Resources, tmp_path: Path, caplog: pytest.LogCaptureFixture, seconds_lost: Callable[[float], None], trouble: str
) -> None:
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    begun = time.monotonic()
    rows, told = run(Task(5, tmp_path / "killed", trouble), disturbed)
    assert (tmp_path / "killed").exists()
    assert "surrogate: starting again from the last saved epoch" in caplog.text
    assert [row["epoch"] for row in rows] == [row["epoch"] for row in told] == [0, 1, 2, 3, 4]
    assert rows[4]["first"] in (1, 2, 3)  # an epoch reported right before the kill may not have been noted yet
    killed = time.monotonic()
    run(Task(5), undisturbed)
    seconds_lost((killed - begun) - (time.monotonic() - killed))
    assert all(torch.equal(weights(disturbed, epoch), weights(undisturbed, epoch)) for epoch in range(5))
    assert len(list((disturbed / "surrogate").glob("epoch_*"))) == 5


def test_training_failed_survives_pickling() -> None:
    failure = TrainingFailed("surrogate: ValueError: no (rank 0)")
    assert str(pickle.loads(pickle.dumps(failure))) == str(failure)
