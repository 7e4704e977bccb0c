"""Full disks and truncated records between two starts: errors name them, and the release equals that of an undisturbed run."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.work import WorkFailed
from pipeline.config.schema import RunConfig
from pipeline.stages import protect
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Manifest
from tests.fixtures.executors import LOCAL
from tests.fixtures.packed_run import copy, digests

pytestmark = pytest.mark.faults

UNLUCKY = "train-000002.tar"  # the shard that the damage meets
Packed = tuple[RunConfig, Folder]


@pytest.fixture(scope="module")
def undisturbed(packed: Packed, tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """A run with the expected release."""
    config, folder = copy(packed, tmp_path_factory.mktemp("undisturbed"), method="sep-fa")
    protect.execute(config, folder, LOCAL)
    return config, folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A separate filesystem with little room."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small filesystem needs root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(packed: Packed, undisturbed: Packed, small_disk: Path) -> None:
    config, folder = copy(packed, small_disk / "run", method="sep-fa")
    free = shutil.disk_usage(small_disk).free
    shard = (small_disk / "run" / "pack" / UNLUCKY).stat().st_size
    filler = small_disk / "filler"
    filler.write_bytes(bytes(free - 4 * shard))  # room for the class means and a shard or two
    with pytest.raises(WorkFailed, match="No space left on device"):
        protect.execute(config, folder, LOCAL)
    assert not folder.exists("protect/manifest.json")
    assert not list(small_disk.rglob(".partial-*"))
    filler.unlink()
    assert digests(protect.execute(config, folder, LOCAL)) == digests(Manifest.load(undisturbed[1], "protect"))


@pytest.mark.parametrize("file", ["pack/manifest.json", "surrogate/manifest.json", "surrogate/checkpoints.json", "protect/manifest.json"])
def test_a_record_cut_short_between_two_starts_is_named(undisturbed: Packed, tmp_path: Path, file: str) -> None:
    config, source = undisturbed
    shutil.copytree(source.path, tmp_path / "run")
    folder = Folder.open(str(tmp_path / "run"))
    if not file.startswith("protect/"):
        (tmp_path / "run" / "protect" / "manifest.json").unlink()  # otherwise the stage counts as done and reads nothing
    whole = folder.read(file)
    folder.write(file, whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=file):
        protect.execute(config, folder, LOCAL)
    folder.write(file, whole)
    assert digests(protect.execute(config, folder, LOCAL)) == digests(Manifest.load(undisturbed[1], "protect"))
