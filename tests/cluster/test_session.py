from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from cluster import session, sweep, training
from cluster.epochs import Worker
from cluster.resources import Resources, divide
from cluster.work import Report
from pipeline.storage.folder import Folder
from tests import ROOT

GPU_NODE = (32, 4)


@pytest.mark.parametrize(
    ("nodes", "workers", "ranks", "cpus_of_a_rank", "tasks"),
    [
        ([(2, 0)], None, 2, 1, 2),
        ([(2, 0)], 1, 1, 2, 1),
        ([(7, 0)], 2, 2, 3, 2),
        ([(64, 0)], None, 8, 8, 64),
        ([GPU_NODE], None, 4, 8, 4),
        ([GPU_NODE], 3, 3, 10, 3),
        ([(2, 4)], None, 2, 1, 2),  # a GPU without a CPU is of no use
        ([(0, 0), *[(8, 1)] * 4], None, 4, 8, 4),  # a head without work
        ([(0, 0), *[(8, 1)] * 4], 2, 2, 8, 2),  # not 16: a rank does not stretch over two machines
        ([(4, 0)] * 3, 4, 4, 2, 4),  # not 3, of which only one a machine fits
    ],
)
def test_resources_are_divided(nodes: list[tuple[int, int]], workers: int | None, ranks: int, cpus_of_a_rank: int, tasks: int) -> None:
    resources = divide(nodes, workers)
    assert (resources.workers, resources.cpus_for(resources.workers), resources.tasks) == (ranks, cpus_of_a_rank, tasks)
    assert resources.gpu == any(gpus for _, gpus in nodes)


@pytest.mark.parametrize(
    ("nodes", "message"), [([GPU_NODE], "5 workers need one GPU each, but .* 4"), ([(2, 0)], "one CPU each, but .* 2")]
)
def test_more_workers_than_machines_can_hold_are_refused(nodes: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        divide(nodes, 5)


def test_cpus_are_shared_among_equal_tasks() -> None:
    assert [divide([(8, 0)], None).cpus_for(at_once) for at_once in (1, 3, 8, 100)] == [8, 2, 1, 1]
    assert [divide([(16, 2)], None).cpus_for(at_once, per_gpu=4) for at_once in (2, 8, 9)] == [8, 2, 1]
    assert divide([(8, 0)], None).cpus_for(3, per_gpu=4) == 2


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a path short enough for Ray's sockets, where an embedded cluster is to keep its files."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)


@contextmanager
def running(function: str, folder: Path, address: str | None = None) -> Iterator[subprocess.Popen[str]]:
    """A Python process of its own that runs a function of this module, and is gone afterwards."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"RAY_TMPDIR": str(folder), "PYTHONPATH": str(ROOT)} | ({"RAY_ADDRESS": address} if address else {})
    command = [sys.executable, "-c", f"from tests.cluster import test_session; test_session.{function}()"]
    with subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def processes_of(folder: Path) -> list[str]:
    """Command lines that mention the folder: those of the cluster that keeps its files there."""
    listing = subprocess.run(["ps", "-axww", "-o", "args="], text=True, capture_output=True, check=True).stdout
    return [line for line in listing.splitlines() if str(folder) in line]


def report_cluster() -> None:
    """Connect, say to which cluster and with what, and leave."""
    resources = session.connect()
    print(json.dumps({"address": ray.get_runtime_context().gcs_address, "cpus": resources.cpus}))
    session.close()


def report_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err == ""  # the console is for our own lines
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.parametrize(
    ("variable", "says"),
    [
        ({"RAY_ADDRESS": "nonsense"}, "ConnectionError: the Ray cluster at RAY_ADDRESS=nonsense cannot be joined (Invalid address"),
        ({"RAY_TMPDIR": "long"}, "ConnectionError: Ray cannot be started on this machine (validate_socket_filename"),
    ],
)
def test_a_cluster_that_does_not_come_about_is_named_with_what_to_do(variable: dict[str, str], says: str, tmp_path: Path) -> None:
    if "RAY_TMPDIR" in variable:
        (tmp_path / ("x" * 120)).mkdir()
        variable = {"RAY_TMPDIR": str(tmp_path / ("x" * 120))}
    program = "from cluster import session; session.connect(1)"
    outside = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env={**outside, **variable}, capture_output=True, text=True)
    assert ended.stderr.splitlines()[-1].startswith(says)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_does_not_answer_is_waited_for_with_a_word_and_an_end(scheme: str) -> None:
    with socket.socket() as closed:  # a port that is taken, and does not listen
        closed.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{closed.getsockname()[1]}"
        program = (
            "import logging; logging.basicConfig(level=logging.INFO, format='%(message)s')\n"
            "from cluster import session; session.JOIN_SECONDS = 0.5; session.connect(1)"
        )
        outside = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment = {**outside, "RAY_ADDRESS": address}
        ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    lines = ended.stderr.splitlines()
    assert lines[0] == f"joining the Ray cluster at {address}, for up to 0 s"
    assert lines[-1].startswith(f"ConnectionError: the Ray cluster at RAY_ADDRESS={address} cannot be joined (nothing answers within 0 s: ")
    assert lines[-1].endswith("correct it, or unset it to use this machine alone")


@pytest.mark.ray
def test_a_process_joins_the_cluster_it_is_told_of(ray_2_cpus: Resources, short_folder: Path) -> None:
    here = ray.get_runtime_context().gcs_address
    with running("report_cluster", short_folder, here) as process:
        assert report_of(process) == {"address": here, "cpus": ray_2_cpus.cpus}
    assert ray.cluster_resources()["CPU"] == ray_2_cpus.cpus  # who left did not take the cluster along


@pytest.mark.ray
def test_machines_that_never_come_are_waited_for_and_then_named(
    ray_2_cpus: Resources, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    monkeypatch.setattr(session, "MACHINES_SECONDS", 0.5)
    with caplog.at_level("INFO"), pytest.raises(ValueError, match=r"3 workers need one CPU each, but .* 2"):
        session.connect(3)
    assert "machines: 3 CPU needed" in caplog.text
    assert session.connect(2) == ray_2_cpus


@pytest.mark.ray
@pytest.mark.slow
def test_a_process_that_is_told_of_none_starts_its_own(ray_2_cpus: Resources, short_folder: Path) -> None:
    with running("report_cluster", short_folder) as process:
        assert report_of(process)["address"] != ray.get_runtime_context().gcs_address
    assert list(short_folder.iterdir()) == []
    assert processes_of(short_folder) == []


def sleepy_loop(task: None, worker: Worker) -> None:
    worker.report(0, {}, {})
    time.sleep(600)


def sleepy_trial(task: None, report: Report) -> None:
    report({"epoch": 0})
    time.sleep(600)


def train_for_ever() -> None:
    """A training that says when its first epoch is through, and then goes on."""
    session.connect(1)
    folder = os.environ["RAY_TMPDIR"]
    training.train(
        sleepy_loop,
        None,
        what="surrogate",
        folder=Folder.open(folder).child("surrogate"),
        workers=1,
        cpus=1,
        gpu=0,
        on_epoch=lambda row: print("begun", flush=True),
    )


def sweep_for_ever() -> None:
    """The same with trials."""
    session.connect(1)
    told = lambda name, row: print("begun", flush=True)  # noqa: E731
    sweep.sweep(sleepy_trial, {"task": None}, what="victim", at_once=1, cpus=1, gpu=0, on_result=told)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("function", ["train_for_ever", "sweep_for_ever"])
def test_an_interrupt_ends_everything_at_once(function: str, short_folder: Path) -> None:
    with running(function, short_folder) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode != 0
    assert err.strip().endswith("KeyboardInterrupt")
    deadline = time.monotonic() + 30
    while (left := processes_of(short_folder)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert left == []


def join_while_machines_come() -> None:
    """Ask for two workers, and then for three, on a cluster that begins with a head that does no work."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    os.environ["RAY_ADDRESS"] = cluster.address
    ray.init(log_to_driver=False)
    with ThreadPoolExecutor() as threads:
        resources = threads.submit(session.connect, 2)
        time.sleep(2)
        assert not resources.done()
        cluster.add_node(num_cpus=2)
        print(json.dumps(asdict(resources.result())))
    session.MACHINES_SECONDS = 0.5
    try:
        session.connect(3)
    except ValueError as error:
        print(error)
    session.close()
    cluster.shutdown()


@pytest.mark.ray
@pytest.mark.slow
def test_machines_that_an_autoscaler_has_to_bring_are_waited_for(short_folder: Path) -> None:
    with running("join_while_machines_come", short_folder) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    first, second = out.splitlines()[-2:]
    resources = json.loads(first)
    assert resources | {"nodes": sorted(resources["nodes"])} == {"nodes": [[0, 0], [2, 0]], "workers": 2, "tasks": 2}
    assert second.startswith("3 workers need one CPU each, but the cluster has 2")
