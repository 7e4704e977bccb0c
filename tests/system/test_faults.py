"""What goes wrong on the way, injected at a chosen point of the protect stage: the release is that of an undisturbed run.

No shard is crafted twice that was finished, nothing half-written is read, and what was altered is named.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import pytest

from cluster.work import Chain, WorkFailed
from pipeline.config.schema import RunConfig
from pipeline.operations.audit import verify
from pipeline.protection import crafting, release
from pipeline.shards.finished_shards import FinishedShard
from pipeline.stages import protect
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Manifest, Shard
from tests.fixtures.executors import RAY
from tests.fixtures.packed_run import copy, digests

pytestmark = [pytest.mark.ray, pytest.mark.faults]

UNLUCKY = "train-000002.tar"  # where it happens
Packed = tuple[RunConfig, Folder]


@pytest.fixture(scope="module")
def undisturbed(packed: Packed, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
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
    with patch("pipeline.protection.release.write_part", die) if first_time(task, shard) else nullcontext():
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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of its own with little room."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small filesystem needs root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(packed: Packed, undisturbed: Manifest, small_disk: Path) -> None:
    config, folder = copy(packed, small_disk / "run", method="sep-fa")
    free = shutil.disk_usage(small_disk).free
    shard = (small_disk / "run" / "pack" / UNLUCKY).stat().st_size
    filler = small_disk / "filler"
    filler.write_bytes(bytes(free - 4 * shard))  # room for the class means and a shard or two
    with pytest.raises(WorkFailed, match="No space left on device"):
        protect.execute(config, folder, RAY)
    assert not folder.exists("protect/manifest.json")
    assert not list(small_disk.rglob(".partial-*"))
    filler.unlink()
    assert digests(protect.execute(config, folder, RAY)) == digests(undisturbed)


@pytest.mark.parametrize("file", ["pack/manifest.json", "surrogate/manifest.json", "surrogate/checkpoints.json", "protect/manifest.json"])
def test_a_record_cut_short_between_two_starts_is_named(packed: Packed, undisturbed: Manifest, tmp_path: Path, file: str) -> None:
    config, folder = copy(packed, tmp_path, method="sep-fa")
    protect.execute(config, folder, RAY)
    if not file.startswith("protect/"):
        (tmp_path / "protect" / "manifest.json").unlink()  # or nothing would be read any more
    whole = folder.read(file)
    folder.write(file, whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=file):
        protect.execute(config, folder, RAY)
    folder.write(file, whole)
    assert digests(protect.execute(config, folder, RAY)) == digests(undisturbed)
