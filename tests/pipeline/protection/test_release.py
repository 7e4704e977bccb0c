"""One shard of the release: fetched once after it was written, and checked as storage gave it back."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
import torch

from pipeline.config.presets import preset
from pipeline.protection.checkpoints import Ensemble
from pipeline.protection.crafting import CraftingTask
from pipeline.protection.release import Clean, Crafted, read_clean, release
from pipeline.shards.pixels import encode_png, pixels_sha256
from pipeline.shards.shard import Sample, decode_shard, encode_shard, write_shard
from pipeline.shards.tables import read_table
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Shard
from sep.budget import Budget
from sep.pictures import one_size
from tests.fixtures.pictures import picture

NAME = "train-000000.tar"


@pytest.fixture
def task(tmp_path: Path) -> CraftingTask:
    run = Folder.open(str(tmp_path))
    return CraftingTask(
        ensemble=Ensemble(run, ()),
        config=preset("smoke").protect,
        seed=0,
        made_from="this",
        classes=(0, 1),
        clean=run.child("pack"),
        out=run.child("protect"),
        prepared=run.child("protect"),
        prepared_sha256="",
        budget=Budget("linf", 8),
    )


@pytest.fixture
def shard(task: CraftingTask) -> Shard:
    samples = [Sample(f"{i:06d}", encode_png(picture(i)), i % 3, b"{}") for i in range(6)]  # class 2 is not protected
    return write_shard(task.clean, NAME, samples)[0]


def crafted(clean: Clean, change: int) -> Crafted:
    """The images that are protected, each value moved by `change` levels towards the middle."""
    chosen = one_size(clean.images[clean.chosen]).int()
    return Crafted(torch.where(chosen < 128, chosen + change, chosen - change).to(torch.uint8), 1.5)


def test_a_released_shard_is_fetched_once(task: CraftingTask, shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    clean, fetched, stream = read_clean(task, shard), Counter[str](), Folder.stream

    @contextmanager
    def counted(folder: Folder, name: str) -> Iterator[Any]:
        fetched[folder.file(name)] += 1
        with stream(folder, name) as opened:
            yield opened

    monkeypatch.setattr(Folder, "stream", counted)
    finished = release(task, shard, clean, crafted(clean, 8))
    assert fetched == {task.out.file(NAME): 1}
    assert finished.shard == Shard(NAME, task.out.sha256(NAME), 6)
    assert finished.extra["protected"] == 4
    assert finished.extra["linf_levels"] == 8
    assert finished.extra["seconds"] == 1.5
    rows = read_table(task.out, f"parts/{NAME}.parquet").to_pylist()
    for row, sample, before in zip(rows, decode_shard(task.out.read(NAME)), clean.samples, strict=True):
        assert (row["key"], row["label"], row["shard"]) == (sample.key, sample.label, NAME) == (before.key, before.label, NAME)
        assert (row["sha256"], row["clean_sha256"]) == (pixels_sha256(sample.pixels), pixels_sha256(before.pixels))
        assert row["linf_levels"] == (0 if before.label == 2 else 8)


def test_the_budget_is_checked_on_what_storage_gives_back(task: CraftingTask, shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    clean = read_clean(task, shard)
    with pytest.raises(ValueError, match="budget"):
        release(task, shard, clean, crafted(clean, 9))
    assert not task.out.child("parts").names()

    write = Folder.write

    def altered(folder: Folder, name: str, data: bytes | BinaryIO) -> None:
        """Write the first image with one level too many."""
        if name == NAME:
            first, *others = decode_shard(cast(bytes, data))
            pixels = first.pixels.copy()
            pixels[0, 0, 0] ^= 1
            data = encode_shard([Sample(first.key, encode_png(pixels), first.label, first.info), *others])
        write(folder, name, io.BytesIO(cast(bytes, data)))

    monkeypatch.setattr(Folder, "write", altered)
    with pytest.raises(ValueError, match=f"{NAME} was altered"):
        release(task, shard, clean, crafted(clean, 8))
