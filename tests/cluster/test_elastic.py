"""A cluster that grows, shrinks and has GPUs, each in a process of its own: `ray_2_cpus` is connected to another.

The GPUs are only counted, not used.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import ray

from cluster.pool import run_all
from cluster.work import Capacity, Chain, Work, own_gpu
from tests import ROOT
from tests.benchmarks.memory import in_a_fresh_process

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.faults]

Spans = list[tuple[float, float]]


def start(**head: int) -> Any:
    """A cluster of one machine, connected to."""
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = str(ROOT)  # workers import what tests send them
    cluster = Cluster(initialize_head=True, head_node_args={**head, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False)
    return cluster


def where(seconds: float) -> str:
    time.sleep(seconds)
    return str(ray.get_runtime_context().get_node_id())


def read(number: int) -> float:
    return time.time()


def compute(number: int, begun: float) -> tuple[float, float]:
    started = time.time()
    time.sleep(0.5)
    return started, time.time()


def keep(number: int, begun: float, computed: tuple[float, float]) -> tuple[tuple[float, float], tuple[float, float]]:
    started = time.time()
    time.sleep(0.5)
    return computed, (started, time.time())


def growing() -> list[str]:
    """Where 60 pieces ran, in the order in which they ended, if a second machine with two CPUs comes after the fourth."""
    cluster, places = start(num_cpus=1), list[str]()
    for _, place in run_all(where, [Work(str(n), (1.0,)) for n in range(60)], what="grow"):  # its processes may take a minute to start
        places.append(place)
        if len(places) == 4:
            cluster.add_node(num_cpus=2)
    return places


def shrinking() -> tuple[list[str], int]:
    """Which of 60 pieces came back, and from how many machines, if one of two is lost after the tenth."""
    cluster, names, places = start(num_cpus=1), [], set()
    lost = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    while len({place for _, place in run_all(where, [Work(str(n), (0.3,)) for n in range(6)], what="start")}) < 2:
        pass  # until the processes of both have started
    for name, place in run_all(where, [Work(str(n), (0.3,)) for n in range(60)], what="shrink"):
        names.append(name)
        places.add(place)
        if len(names) == 10:
            cluster.remove_node(lost, allow_graceful=False)
    return names, len(places)


def on_gpus(capacity: Capacity, cpus: int = 1) -> tuple[Spans, Spans]:
    """When each of eight pieces was computed, and kept, on a machine with one GPU."""
    start(num_cpus=cpus, num_gpus=1)
    found = [
        spans for _, spans in run_all(Chain(read, compute, keep), [Work(str(n), (n,)) for n in range(8)], what="gpu", capacity=capacity)
    ]
    return sorted(computed for computed, _ in found), sorted(kept for _, kept in found)


def which(seconds: float) -> tuple[int, str, str | None]:
    time.sleep(seconds)
    return own_gpu(), str(ray.get_gpu_ids()[0]), os.environ.get("CUDA_VISIBLE_DEVICES")


def on_two_gpus() -> list[tuple[int, str, str | None]]:
    """For each of twenty tasks the GPU it is to use, the one Ray gave it, and what CUDA would be allowed to see."""
    start(num_cpus=4, num_gpus=2)
    return [found for _, found in run_all(which, [Work(str(n), (0.1,)) for n in range(20)], what="gpus", capacity=Capacity(gpus=1))]


def overlap(one: Spans, other: Spans) -> int:
    """How many pairs of different spans share some time."""
    return sum(a is not b and a[0] < b[1] and b[0] < a[1] for a in one for b in other)


def fresh(scenario: Callable[..., Any], *arguments: Any) -> Any:
    return in_a_fresh_process(scenario, *arguments)


def test_machines_that_come_are_used() -> None:
    places = fresh(growing)
    assert len(places) == 60
    first, second = dict.fromkeys(places)
    since = places[places.index(second) :]
    assert Counter(since)[second] > Counter(since)[first] > 0  # the new one has twice the CPUs


def test_a_lost_machine_costs_no_piece_and_gives_none_twice() -> None:
    names, machines = fresh(shrinking)
    assert sorted(names, key=int) == [str(n) for n in range(60)]
    assert machines == 2


@pytest.mark.parametrize("capacity", [Capacity(gpus=1), Capacity(1, gpus=1)])
def test_a_gpu_is_held_by_one_piece_while_others_are_kept(capacity: Capacity) -> None:
    computed, kept = fresh(on_gpus, capacity)
    assert len(computed) == len(kept) == 8
    assert overlap(computed, computed) == 0
    assert overlap(computed, kept) > 0


def test_several_tasks_share_a_gpu_where_asked_to() -> None:
    computed, _ = fresh(on_gpus, Capacity(gpus=0.5))
    assert overlap(computed, computed) > 0


def test_every_task_computes_on_the_gpu_it_was_given() -> None:
    """Though processes serve tasks of either GPU, and CUDA would believe what it was told first."""
    given = fresh(on_two_gpus)
    assert {own for own, _, _ in given} == {0, 1}
    assert all(own == int(told) and visible is None for own, told, visible in given)
