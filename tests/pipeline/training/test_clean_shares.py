"""Clean images of a diluted release: their choice, and that their pixels really are clean."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.shards import tables
from pipeline.shards.pixels import encode_png
from pipeline.shards.shard import CorruptShard, Sample, write_shard
from pipeline.shards.tables import rows_to_table, write_table
from pipeline.shards.tensors import load
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Shard
from pipeline.training.batches import Split, Streaming, open_batches
from pipeline.training.clean_shares import Diluted, Repeated, choose, protected_labels, repeats

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
            entries.append(write_shard(folder, name, samples)[0])
    rows.append({"key": "test", "label": 0, "shard": "test-000000.tar"})
    schema = pa.schema({"key": pa.string(), "label": pa.int64(), "shard": pa.string()})
    write_table(clean, "samples.parquet", rows_to_table(rows, schema))
    return clean, protected, *shards


def test_exactly_the_chosen_images_are_clean(release: tuple[Folder, Folder, list[Shard], list[Shard]]) -> None:
    pack, protect, clean, protected = release
    keys = choose(protected_labels(pack, protected, (0, 1, 2, 3)), 20, seed=1)
    assert len(keys) == 8
    images, labels = load(protect, protected, Diluted(pack, clean, keys))
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        expected = number if f"{number:03d}" in keys else 100 + number
        assert torch.equal(image, torch.full((3, 4, 4), expected, dtype=torch.uint8))
        assert int(label) == number % 4


def test_only_released_images_of_protected_classes_count(
    release: tuple[Folder, Folder, list[Shard], list[Shard]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pack, _, _, protected = release
    monkeypatch.setattr(tables, "BATCH", 7)  # rows, of 41
    labels = protected_labels(pack, protected[1:], (1, 3))
    assert len(labels) == 10
    assert all(20 <= int(key) < 40 and int(key) % 4 == label for key, label in labels.items())
    assert set(labels.values()) == {1, 3}


@pytest.mark.parametrize("memory_limit_mb", [0, 1])
def test_batches_have_them_streamed_or_in_memory(release: tuple[Folder, Folder, list[Shard], list[Shard]], memory_limit_mb: int) -> None:
    pack, protect, clean, protected = release
    keys = choose(protected_labels(pack, protected, range(4)), 50, seed=1)
    read = Diluted(pack, clean, keys)
    batches = open_batches(protect, protected, 48, memory_limit_mb, Split(10, 0), torch.device("cpu"), read=read)
    assert isinstance(batches, Streaming) == (memory_limit_mb == 0)
    levels = sorted(int(image[0, 0, 0]) for images, _ in batches.epoch(0) for image in images)
    assert levels == sorted(number if f"{number:03d}" in keys else 100 + number for number in range(40))


@pytest.mark.parametrize("percent", [10, 20, 50, 99])
def test_a_share_is_repeated_evenly_and_within_its_class(percent: int) -> None:
    chosen = choose(LABELS, percent, seed=3)
    instead = repeats(LABELS, chosen)
    assert instead.keys() == LABELS.keys()
    assert all(LABELS[key] == LABELS[other] for key, other in instead.items())
    assert all(instead[key] == key for key in chosen)
    times = Counter(instead.values())
    assert times.keys() == chosen
    assert max(times.values()) - min(times.values()) <= 1
    assert instead == repeats(dict(reversed(LABELS.items())), chosen)


def test_a_class_without_a_clean_image_cannot_be_repeated() -> None:
    few = {f"k{number}": number % 2 for number in range(20)}
    with pytest.raises(ValueError, match=r"of the 10 images of class [01] none is among the clean ones: take a larger percentage"):
        repeats(few, choose(few, 5, seed=0))


@pytest.mark.parametrize("memory_limit_mb", [0, 1])
def test_a_share_alone_fills_as_many_steps_streamed_or_in_memory(
    release: tuple[Folder, Folder, list[Shard], list[Shard]], memory_limit_mb: int
) -> None:
    """The share covers classes 0 and 1, whose images lie in both shards; other classes stay as they are."""
    pack, protect, clean, protected = release
    labels = protected_labels(pack, clean, (0, 1))
    keys = choose(labels, 20, seed=1)
    assert len(keys) == 4
    opened = [
        open_batches(folder, shards, 48, memory_limit_mb, Split(10, 0), torch.device("cpu"), read=read)
        for folder, shards, read in (
            (pack, clean, Repeated.of(pack, clean, labels, keys)),
            (protect, protected, Diluted(pack, clean, keys)),
        )
    ]
    assert [isinstance(batches, Streaming) for batches in opened] == 2 * [memory_limit_mb == 0]
    alone, mixed = (
        [(int(image[0, 0, 0]), int(k)) for images, ks in batches.epoch(0) for image, k in zip(images, ks, strict=True)]
        for batches in opened
    )
    assert Counter(label for _, label in alone) == Counter(label for _, label in mixed) == dict.fromkeys(range(4), 10)
    taken = Counter(level for level, label in alone if label in (0, 1))
    assert taken.keys() == {int(key) for key in keys} == {level for level, label in mixed if label in (0, 1) and level < 100}
    assert set(taken.values()) == {5}
    assert {level for level, label in alone if label in (2, 3)} == {number for number in range(40) if number % 4 in (2, 3)}
    assert opened[0].steps == opened[1].steps == 4


def test_a_damaged_clean_shard_is_said(release: tuple[Folder, Folder, list[Shard], list[Shard]]) -> None:
    pack, protect, clean, protected = release
    pack.write(clean[0].name, b"not what was written")
    with pytest.raises(CorruptShard, match=r"pack/train-000000\.tar was altered"):
        Diluted(pack, clean, frozenset({"003"}))(protect, protected[0])
    assert len(Diluted(pack, clean, frozenset())(protect, protected[0])) == 20
    with pytest.raises(CorruptShard, match=r"pack/train-000000\.tar was altered"):
        Repeated.of(pack, clean, {"003": 3}, {"003"})
