"""One machine without Ray: the same files, whether this process works alone or shares its work with others."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import local
from cluster.local import LocalExecutor
from cluster.work import Capacity
from pipeline.config.schema import RunConfig
from pipeline.stages import pack, protect
from pipeline.storage.folder import Folder
from tests.fixtures.executors import LOCAL
from tests.fixtures.packed_run import copy, digests

TWO = LocalExecutor(processes=2)


@pytest.fixture(autouse=True)
def share_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "ALONE_SECONDS", -1.0)


def test_packed_shards_are_the_same(packed: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = packed
    pack.execute(config, Folder.open(str(tmp_path)), TWO)
    names = folder.child("pack").names()
    assert len([name for name in names if name.endswith(".tar")]) > 2
    for name in names:
        if name.endswith((".tar", ".parquet")):
            assert (tmp_path / "pack" / name).read_bytes() == folder.child("pack").read(name)


@pytest.mark.slow  # with a GPU the work is shared in another way, which a test in `tests/gpu` looks at
def test_released_shards_are_the_same(packed: tuple[RunConfig, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, folder = copy(packed, tmp_path / "alone", steps=2)
    alone = protect.execute(config, folder, LOCAL)
    monkeypatch.setattr(protect, "_capacity", lambda config, resources: Capacity(config.workers))
    config, folder = copy(packed, tmp_path / "shared", steps=2)
    shared = protect.execute(config, folder, TWO)
    assert digests(shared) == digests(alone)
    for name in ("samples.parquet", *[shard.name for shard in alone.shards["train"]]):
        assert (tmp_path / "shared/protect" / name).read_bytes() == (tmp_path / "alone/protect" / name).read_bytes()
