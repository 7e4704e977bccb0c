"""What goes wrong on the way, injected at a chosen point of the protect stage: the release is that of an undisturbed run.

No shard is crafted twice that was finished, nothing half-written is read, and what was altered is named.
"""

from __future__ import annotations

import os
import signal
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import pytest

from cluster.work import Chain, WorkFailed
from pipeline.config.schema import RunConfig
from pipeline.operations.verification import verify
from pipeline.protection import crafting, release
from pipeline.shards.finished_shards import FinishedShard
from pipeline.stages import protect
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Manifest, Shard
from tests.fixtures.on_ray import RAY
from tests.fixtures.packed_run import copy, digests

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.usefixtures("ray_2_cpus")]

UNLUCKY = "train-000002.tar"  # where it happens
Packed = tuple[RunConfig, Folder]


@pytest.fixture(scope="module")
def undisturbed(ray_2_cpus: object, packed: Packed, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The release as it has to come out."""
    config, folder = copy(packed, tmp_path_factory.mktemp("undisturbed"), method="sep-fa")
    return protect.execute(config, folder, RAY)


def notes(task: crafting.CraftingTask) -> Path:
    return Path(task.out.path).parent / "notes"


def first_time(task: crafting.CraftingTask, shard: Shard) -> bool:
    """Whether the unlucky shard has its accident now."""
    if shard.name != UNLUCKY or (notes(task) / "happened").exists():
        return False
    (notes(task) / "happened").touch()
    return True


def die(*arguments: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(*arguments: object) -> None:
    raise OSError(5, "Input/output error")


def noted_craft(task: crafting.CraftingTask, shard: Shard, clean: release.Clean) -> release.Crafted:
    """Crafting that leaves a note each time."""
    (notes(task) / f"{shard.name}-{uuid.uuid4().hex}").touch()
    return release.craft_chosen(task, shard, clean)


def killed_while_crafting(task: crafting.CraftingTask, shard: Shard, clean: release.Clean) -> release.Crafted:
    crafted = noted_craft(task, shard, clean)
    if first_time(task, shard):
        die()
    return crafted


def killed_before_it_is_marked(task: crafting.CraftingTask, shard: Shard, clean: release.Clean, crafted: release.Crafted) -> FinishedShard:
    with patch("pipeline.protection.release.write_finished_shard", die) if first_time(task, shard) else nullcontext():
        return release.release(task, shard, clean, crafted)


def storage_refuses_once(task: crafting.CraftingTask, shard: Shard, clean: release.Clean, crafted: release.Crafted) -> FinishedShard:
    with patch("pipeline.storage.folder.Folder.write", refuse) if first_time(task, shard) else nullcontext():
        return release.release(task, shard, clean, crafted)


ACCIDENTS = {
    "killed while crafting": Chain(release.read_clean, killed_while_crafting, release.release),
    "killed between shard and mark": Chain(release.read_clean, noted_craft, killed_before_it_is_marked),
    "storage refuses once": Chain(release.read_clean, noted_craft, storage_refuses_once),
}


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_an_accident_costs_one_shard_its_time(
    packed: Packed,
    undisturbed: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds_lost: Callable[[float], None],
    accident: str,
) -> None:
    config, folder = copy(packed, tmp_path / "run", method="sep-fa")
    notebook = tmp_path / "run" / "notes"
    notebook.mkdir()
    monkeypatch.setattr(protect, "PROTECT", ACCIDENTS[accident])
    manifest = protect.execute(config, folder, RAY)
    assert digests(manifest) == digests(undisturbed)
    crafts = Counter(path.name.rsplit("-", 1)[0] for path in notebook.iterdir() if path.name != "happened")
    assert crafts == {shard.name: 2 if shard.name == UNLUCKY else 1 for shard in undisturbed.shards["train"]}
    assert verify(folder).faults == ()
    seconds_lost(manifest.seconds - undisturbed.seconds)


def poisoned(task: crafting.CraftingTask, shard: Shard, clean: release.Clean) -> release.Crafted:
    """Crafting whose process dies on one shard as often as it is tried."""
    if shard.name == UNLUCKY:
        die()
    return release.craft_chosen(task, shard, clean)


@pytest.mark.slow
def test_a_shard_on_which_every_process_dies_is_left_out_by_name(
    packed: Packed, undisturbed: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = copy(packed, tmp_path / "run", method="sep-fa")
    with monkeypatch.context() as patched:
        patched.setattr(protect, "PROTECT", Chain(release.read_clean, poisoned, release.release))
        with pytest.raises(WorkFailed, match=rf"protect: 1 failed; the others are finished and saved \({UNLUCKY}: WorkerCrashedError"):
            protect.execute(config, folder, RAY)
    assert not folder.exists("protect/manifest.json")
    tars = [name for name in folder.child("protect").names() if name.endswith(".tar")]
    assert sorted(tars) == [shard.name for shard in undisturbed.shards["train"] if shard.name != UNLUCKY]
    assert digests(protect.execute(config, folder, RAY)) == digests(undisturbed)
