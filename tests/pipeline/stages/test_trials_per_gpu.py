"""Several victims on one GPU: the request to the cluster, which decides only speed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster import session, sweep
from cluster.resources import Resources
from pipeline.config.schema import RunConfig
from pipeline.results.run_results import RunResults
from pipeline.stages import victim
from pipeline.storage.folder import Folder
from pipeline.tracking.tracker import open_tracker
from pipeline.training import trial
from sep.execution import SHARED, share_memory
from tests.fixtures import finished_run
from tests.fixtures.on_ray import RAY

TWO_GPUS = Resources(nodes=((16, 2),), workers=2, tasks=2)
TWO_CPUS = Resources(nodes=((2, 0),), workers=2, tasks=2)


class Cluster:
    """A cluster that trains in this process, and remembers its requests."""

    def __init__(self) -> None:
        self.resources = TWO_GPUS
        self.asked: list[dict[str, float]] = []
        self.shares: list[int] = []  # how many processes share a GPU's memory, for each trial

    def __call__(self, function: Any, tasks: Mapping[str, Any], *, at_once: int, cpus: int, gpu: float, **_: Any) -> None:
        self.asked.append({"at_once": at_once, "cpus": cpus, "gpu": gpu})
        for task in tasks.values():
            assert (task.gpu, task.threads) == (bool(gpu), cpus)
            function(replace(task, gpu=False, threads=1), lambda result: None)  # this machine has no GPU


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The cluster that replaces Ray."""
    threads, made = torch.get_num_threads(), Cluster()
    monkeypatch.setattr(sweep, "sweep", made)
    monkeypatch.setattr(session, "connect", lambda workers: made.resources)
    monkeypatch.setattr(trial, "share_memory", lambda device, processes: made.shares.append(processes))
    yield made
    torch.set_num_threads(threads)


@pytest.fixture
def protected(tmp_path: Path) -> tuple[RunConfig, Folder]:
    """A run with protected images that asks for eight victims."""
    config, folder = finished_run.write(tmp_path / "run", ("pack", "surrogate", "protect"))
    return replace(config, victim=replace(config.victim, epochs=1, seeds=(0, 1, 2, 3))), folder


def on_one_gpu(config: RunConfig, trials: int) -> RunConfig:
    return replace(config, victim=replace(config.victim, trials_per_gpu=trials))


@pytest.mark.parametrize(
    ("trials", "asked"),
    [
        (1, {"at_once": 2, "cpus": 8, "gpu": 1}),
        (2, {"at_once": 4, "cpus": 4, "gpu": 0.5}),
        (16, {"at_once": 8, "cpus": 2, "gpu": 1 / 16}),  # only eight trials, all at once
    ],
)
def test_the_cluster_is_asked_for_a_part_of_a_gpu(
    trials: int, asked: dict[str, float], protected: tuple[RunConfig, Folder], cluster: Cluster
) -> None:
    config, folder = protected
    victim.execute(on_one_gpu(config, trials), folder, RAY)
    assert cluster.asked == [asked]
    assert cluster.shares == [trials] * 8


def test_on_cpus_it_changes_nothing(protected: tuple[RunConfig, Folder], cluster: Cluster) -> None:
    config, folder = protected
    cluster.resources = TWO_CPUS
    victim.execute(on_one_gpu(config, 4), folder, RAY)
    assert cluster.asked == [{"at_once": 2, "cpus": 1, "gpu": 0}]


def test_what_is_finished_stays_when_it_changes(protected: tuple[RunConfig, Folder], cluster: Cluster) -> None:
    config, folder = protected
    few = replace(config, victim=replace(config.victim, seeds=(0, 1)))
    manifest = victim.execute(on_one_gpu(few, 2), folder, RAY)
    # The record of a version without this setting.
    assert "trials_per_gpu" not in json.loads(folder.read("victim/started.json"))["victim"]
    assert victim.execute(on_one_gpu(few, 4), folder, RAY) == manifest
    assert len(cluster.asked) == 1
    trained = {name: folder.read(f"victim/{name}") for name in folder.child("victim").names() if "seed" in name}

    victim.execute(replace(on_one_gpu(config, 4), overwrite=True), folder, RAY)  # two more seeds
    assert len(cluster.asked) == 2
    assert len(cluster.shares) == 8
    assert {name: folder.read(f"victim/{name}") for name in trained} == trained


def test_it_makes_no_other_run_in_mlflow(tmp_path: Path) -> None:
    config, folder = finished_run.write(tmp_path / "run", ("pack", "surrogate"))
    parents = []
    for trials, stage in ((1, "pack"), (4, "surrogate")):
        tracker = open_tracker(on_one_gpu(config, trials), folder)
        tracker.log_stage(stage, RunResults.read(folder))
        parents.append(json.loads(folder.read("tracking.json"))["parent"])
    assert parents[0] == parents[1]


@pytest.mark.parametrize(("index", "processes", "told"), [(None, 4, [(SHARED / 4, None)]), (1, 2, [(SHARED / 2, 1)]), (None, 1, [])])
def test_memory_is_shared_alike(index: int | None, processes: int, told: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[Any] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, device: shares.append((share, device)))
    share_memory(torch.device("cuda", index) if index is not None else torch.device("cuda"), processes)
    share_memory(torch.device("cpu"), processes)
    assert shares == told
