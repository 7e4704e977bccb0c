"""Which images of a diluted release are clean, and that they really are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.batches import Split, Streaming, load, open_batches
from pipeline.dilution import Diluted, choose, clean_keys
from pipeline.shards import CorruptShard, Sample, Shard, encode_png, rows_to_table, write_shard, write_table
from pipeline.storage import Folder

LABELS = {f"key-{number:04d}": number % 10 for number in range(1000)}


@pytest.mark.parametrize("percent", [0, 1, 10, 20, 50, 100])
def test_a_share_of_every_class_is_taken(percent: int) -> None:
    taken = Counter(LABELS[key] for key in choose(LABELS, percent, seed=3))
    assert [taken[label] for label in range(10)] == [percent] * 10


def test_unequal_and_small_classes_are_taken_in_proportion() -> None:
    labels = {f"a{number}": 0 for number in range(400)} | {f"b{number}": 1 for number in range(100)} | {f"c{n}": 2 for n in range(7)}
    taken = Counter(labels[key] for key in choose(labels, 10, seed=0))
    assert sum(taken.values()) == round(50.7)
    assert all(abs(taken[label] - share) <= 1 for label, share in ((0, 40), (1, 10), (2, 0.7)))
    few = {f"k{number}": number % 20 for number in range(100)}
    assert len(choose(few, 1, seed=0)) == 1


def test_the_choice_is_that_of_the_seed_and_the_keys_and_grows() -> None:
    one = choose(LABELS, 10, seed=3)
    assert one == choose(dict(reversed(LABELS.items())), 10, seed=3)
    assert one != choose(LABELS, 10, seed=4)
    assert choose(LABELS, 1, seed=3) < one < choose(LABELS, 20, seed=3) < choose(LABELS, 50, seed=3)


@pytest.fixture
def release(tmp_path: Path) -> tuple[Folder, Folder, list[Shard], list[Shard]]:
    """Two shards of 20, ten of each class: image i is filled with i, and with 100 + i in its protected form."""
    clean, protected = Folder.open(str(tmp_path / "pack")), Folder.open(str(tmp_path / "protect"))
    shards: tuple[list[Shard], list[Shard]] = ([], [])
    rows = []
    for index in range(2):
        name = f"train-{index:06d}.tar"
        numbers = range(20 * index, 20 * index + 20)
        rows += [{"key": f"{number:03d}", "label": number % 4, "shard": name} for number in numbers]
        for folder, level, entries in ((clean, 0, shards[0]), (protected, 100, shards[1])):
            samples = [Sample(f"{n:03d}", encode_png(np.full((4, 4, 3), level + n, np.uint8)), n % 4, b"{}") for n in numbers]
            entries.append(write_shard(folder, name, samples))
    rows.append({"key": "test", "label": 0, "shard": "test-000000.tar"})
    schema = pa.schema({"key": pa.string(), "label": pa.int64(), "shard": pa.string()})
    write_table(clean, "samples.parquet", rows_to_table(rows, schema))
    return clean, protected, *shards


def test_exactly_the_chosen_images_are_clean(release: tuple[Folder, Folder, list[Shard], list[Shard]]) -> None:
    pack, protect, clean, protected = release
    keys = clean_keys(pack, protected, (0, 1, 2, 3), 20, seed=1)
    assert len(keys) == 8
    images, labels = load(protect, protected, Diluted(pack, clean, keys))
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        expected = number if f"{number:03d}" in keys else 100 + number
        assert torch.equal(image, torch.full((3, 4, 4), expected, dtype=torch.uint8))
        assert int(label) == number % 4


def test_only_released_images_of_protected_classes_count(release: tuple[Folder, Folder, list[Shard], list[Shard]]) -> None:
    pack, _, _, protected = release
    keys = clean_keys(pack, protected[1:], (1, 3), 50, seed=1)
    assert len(keys) == 5
    assert all(20 <= int(key) < 40 and int(key) % 4 in (1, 3) for key in keys)


@pytest.mark.parametrize("memory_limit_mb", [0, 1])
def test_batches_have_them_streamed_or_in_memory(release: tuple[Folder, Folder, list[Shard], list[Shard]], memory_limit_mb: int) -> None:
    pack, protect, clean, protected = release
    keys = clean_keys(pack, protected, range(4), 50, seed=1)
    read = Diluted(pack, clean, keys)
    batches = open_batches(protect, protected, 48, memory_limit_mb, Split(10, 0), torch.device("cpu"), read=read)
    assert isinstance(batches, Streaming) == (memory_limit_mb == 0)
    levels = sorted(int(image[0, 0, 0]) for images, _ in batches.epoch(0) for image in images)
    assert levels == sorted(number if f"{number:03d}" in keys else 100 + number for number in range(40))


def test_a_damaged_clean_shard_is_said(release: tuple[Folder, Folder, list[Shard], list[Shard]]) -> None:
    pack, protect, clean, protected = release
    pack.write(clean[0].name, b"not what was written")
    with pytest.raises(CorruptShard, match=r"pack/train-000000\.tar was altered"):
        Diluted(pack, clean, frozenset({"003"}))(protect, protected[0])
    assert len(Diluted(pack, clean, frozenset())(protect, protected[0])) == 20
