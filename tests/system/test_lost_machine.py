"""A whole machine is lost in the middle of a stage and another comes, as on spot instances: the run ends with the same bytes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import run
from pipeline.operations.verification import verify
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Manifest
from tests.benchmarks.memory import in_a_fresh_process
from tests.fixtures.packed_run import digests

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.faults]

COMMAND = ["--preset", "smoke", "--stages", "pack", "surrogate", "protect", "--surrogate.epochs", "4", "--workers", "2"]
LOST_AFTER = {"surrogate": "surrogate/epoch_0001", "protect": "protect/parts/*.json", "nothing": "never"}


def drive(folder: str, lost_after: str) -> tuple[int, bool]:
    """Exit code of a run on three machines, the head without work, and whether one of the others was lost and replaced."""
    from ray.cluster_utils import Cluster

    # It is ended below: what it would set up to be ended at exit can only be set up in the main thread.
    cluster: Any = Cluster(initialize_head=True, shutdown_at_exit=False, head_node_args={"num_cpus": 0, "include_dashboard": False})
    machines = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    over, lost = threading.Event(), threading.Event()

    def lose_one() -> None:
        while not over.is_set():
            if list(Path(folder).glob(lost_after)):
                cluster.remove_node(machines[1], allow_graceful=False)
                cluster.add_node(num_cpus=1)
                lost.set()
                return
            time.sleep(0.05)

    thread = threading.Thread(target=lose_one)
    thread.start()
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        return run.main([*COMMAND, "--run", folder]), lost.is_set()
    finally:
        over.set()
        thread.join()
        cluster.shutdown()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A run in which nothing happened."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert in_a_fresh_process(drive, str(folder), LOST_AFTER["nothing"]) == (0, False)
    return Folder.open(str(folder))


@pytest.mark.parametrize("stage", ["surrogate", "protect"])
def test_a_machine_lost_in_mid_stage_changes_no_byte(
    undisturbed: Folder, tmp_path: Path, seconds_lost: Callable[[float], None], stage: str
) -> None:
    run_folder = tmp_path / "run"
    assert in_a_fresh_process(drive, str(run_folder), LOST_AFTER[stage]) == (0, True)
    folder = Folder.open(str(run_folder))
    assert digests(Manifest.load(folder, "protect")) == digests(Manifest.load(undisturbed, "protect"))
    assert len(list((run_folder / "surrogate").glob("epoch_*"))) == 4
    assert verify(folder).faults == ()
    seconds_lost(Manifest.load(folder, stage).seconds - Manifest.load(undisturbed, stage).seconds)
