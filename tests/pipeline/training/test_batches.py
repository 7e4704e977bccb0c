"""Batches: equal steps on every rank, no image twice in an epoch, and an epoch that is always the same."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config.seeds import derive
from pipeline.shards.decoded_cache import DecodedCache
from pipeline.shards.pixels import encode_png
from pipeline.shards.shard import CorruptShard, Sample, write_shard
from pipeline.shards.tensors import Loading, in_order, load
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Shard
from pipeline.training import batches as batches_module
from pipeline.training.batches import InMemory, Split, Streaming, open_batches
from sep.pictures import Images, Pictures
from sep.views.own_size import fixed_view

SIZES = (7, 12, 9, 12, 5)


@pytest.fixture
def numbered(tmp_path: Path) -> tuple[Folder, list[Shard]]:
    """Shards of unequal size: image i is filled with i and labelled i."""
    folder, number, shards = Folder.open(str(tmp_path)), 0, []
    for index, size in enumerate(SIZES):
        samples = []
        for _ in range(size):
            samples.append(Sample(f"{number:04d}", encode_png(np.full((4, 4, 3), number, np.uint8)), number, b"{}"))
            number += 1
        shards.append(write_shard(folder, f"train-{index:06d}.tar", samples)[0])
    return folder, shards


def unchanged(images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return images


def test_images_are_transformed_some_at_a_time(numbered: tuple[Folder, list[Shard]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "TRANSFORMED_TOGETHER", 10)
    given: list[int] = []

    def brighter(images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        given.append(len(images))
        return images + 100

    batches = open_batches(*numbered, 48, 2000, Split(4, 0), torch.device("cpu"), brighter)
    assert given == [10, 10, 10, 10, 5]
    assert all((images[:, 0, 0, 0] == labels + 100).all() for images, labels in batches.epoch(0))


def test_ranks_take_equal_steps_and_share_no_image_in_memory(numbered: tuple[Folder, list[Shard]]) -> None:
    images, labels = load(*numbered)
    ranks = [InMemory(images, labels, Split(batch_size=4, seed=1, rank=rank, size=2)) for rank in range(2)]
    seen = [[batch for batch in rank.epoch(3)] for rank in ranks]
    assert len(seen[0]) == len(seen[1]) == ranks[0].steps == sum(SIZES) // 2 // 4
    used = Counter(int(label) for rank in seen for _, batch in rank for label in batch)
    assert max(used.values()) == 1
    assert all((batch[:, 0, 0, 0] == label).all() for rank in seen for batch, label in rank)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_ranks_take_equal_steps_and_share_no_image_streaming(numbered: tuple[Folder, list[Shard]], size: int) -> None:
    folder, shards = numbered
    for epoch in range(4):
        ranks = [Streaming(folder, shards, Split(4, 1, rank, size), unchanged) for rank in range(size)]
        seen = [list(rank.epoch(epoch)) for rank in ranks]
        assert {len(batches) for batches in seen} == {ranks[0].steps}
        assert ranks[0].steps >= 1
        used = Counter(int(label) for rank in seen for _, batch in rank for label in batch)
        assert max(used.values()) == 1
        assert all((batch[:, 0, 0, 0] == label).all() for rank in seen for batch, label in rank)


def test_pictures_of_their_own_size_are_cut_ahead_of_the_network() -> None:
    """In another thread. Each has the levels of its label, and is seen once."""
    pictures, threads = Pictures([torch.full((3, 8 + i, 9), i, dtype=torch.uint8) for i in range(12)]), set[str]()

    def seen(images: Images) -> torch.Tensor:
        threads.add(threading.current_thread().name)
        return fixed_view(images, 4)

    epoch = [*InMemory(pictures, torch.arange(12), Split(4, 0), lambda _: seen).epoch(0)]
    assert threading.current_thread().name not in threads
    assert sorted(int(label) for _, labels in epoch for label in labels) == [*range(12)]
    assert all(torch.equal(images, labels.view(-1, 1, 1, 1).expand(4, 3, 4, 4)) for images, labels in epoch)


def test_streaming_alone_reaches_every_full_batch(numbered: tuple[Folder, list[Shard]]) -> None:
    folder, shards = numbered
    batches = list(Streaming(folder, shards, Split(5, 0), unchanged).epoch(0))
    assert len(batches) == sum(SIZES) // 5


def test_same_epoch_is_the_same_and_another_is_not(numbered: tuple[Folder, list[Shard]]) -> None:
    folder, shards = numbered
    for make in (
        lambda: InMemory(*load(folder, shards), Split(4, 7)),
        lambda: Streaming(folder, shards, Split(4, 7), unchanged),
    ):
        first, again, other = ([label.tolist() for _, label in make().epoch(epoch)] for epoch in (2, 2, 3))
        assert first == again != other


def test_streamed_batches_are_the_same_from_a_cache_and_on_any_number_of_threads(
    numbered: tuple[Folder, list[Shard]], tmp_path: Path
) -> None:
    folder, shards = numbered
    (tmp_path / "cache").mkdir()
    loadings = [Loading(1), Loading(4), *[Loading(3, DecodedCache(tmp_path / "cache", 10**9))] * 2]
    epochs = [[*Streaming(folder, shards, Split(4, 7), unchanged, loading=loading).epoch(1)] for loading in loadings]
    assert len(list((tmp_path / "cache").iterdir())) == len(shards)
    for epoch in epochs[1:]:
        assert all(torch.equal(a, b) for one, two in zip(epochs[0], epoch, strict=True) for a, b in zip(one, two, strict=True))


def test_an_epoch_that_is_left_early_leaves_nothing_running(numbered: tuple[Folder, list[Shard]]) -> None:
    for _ in Streaming(*numbered, Split(4, 7), unchanged).epoch(0):
        break
    gc.collect()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")] == []


def test_a_shard_that_was_altered_stops_the_epoch(numbered: tuple[Folder, list[Shard]]) -> None:
    folder, shards = numbered
    folder.write(shards[2].name, b"altered")
    with pytest.raises(CorruptShard, match=shards[2].name):
        list(Streaming(folder, shards, Split(4, 7), unchanged).epoch(0))


def test_streams_what_does_not_fit_and_transforms_either_way(numbered: tuple[Folder, list[Shard]]) -> None:
    folder, shards = numbered

    def brighter(images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return images + 100

    kinds = []
    for limit in (0, 1):
        batches = open_batches(folder, shards, 48, limit, Split(4, 0), torch.device("cpu"), brighter)
        kinds.append(type(batches))
        assert all((images[:, 0, 0, 0] == labels + 100).all() for images, labels in batches.epoch(0))
    assert kinds == [Streaming, InMemory]


@pytest.mark.parametrize(
    ("device", "side", "sizes"),
    [
        ("cpu", 32, [100] * 30),
        ("cuda", 32, [1024, 1024, 952]),
        ("cuda", 224, [100] * 30),  # as large as 1,024 small ones already
        ("cuda", 1, [3000]),  # features, as images of one pixel
    ],
)
def test_a_gpu_tests_many_small_images_at_a_time(device: str, side: int, sizes: list[int]) -> None:
    images, labels = torch.zeros(1, 3, 1, 1, dtype=torch.uint8).expand(3000, 3, side, side), torch.arange(3000)
    batches = list(in_order(images, labels, torch.device(device)))
    assert [len(seen) for seen, _ in batches] == sizes
    assert torch.equal(torch.cat([classes for _, classes in batches]), labels)


def test_too_few_images_or_shards_is_said(numbered: tuple[Folder, list[Shard]]) -> None:
    folder, shards = numbered
    with pytest.raises(ValueError, match="45 training images per rank do not fill a batch of 64"):
        InMemory(*load(folder, shards), Split(64, 0))
    with pytest.raises(ValueError, match="5 shards cannot be dealt to 6 ranks"):
        Streaming(folder, shards, Split(1, 0, size=6), unchanged)


def test_seeds_depend_on_the_whole_purpose() -> None:
    assert derive(0, "craft", "a") == derive(0, "craft", "a")
    assert len({derive(0, "craft", "a"), derive(1, "craft", "a"), derive(0, "order", "a"), derive(0, "craft", "b")}) == 4
