"""A data set before any image is decoded: the list of its images, their classes and splits."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from pipeline.config.class_selection import choose_classes
from pipeline.config.schema import SPLITS
from pipeline.shards.pixels import Pixels
from pipeline.storage.file_names import alike
from pipeline.storage.records import SHOWN, shown

NUMBER = "number the classes from 0, without gaps"


class SourceError(ValueError):
    """The error for a source that cannot be packed as it is. The message says what to change."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One labelled image and its place in the source."""

    split: str
    label: int
    source: str  # its name, relative to the data root
    file: str = ""  # the file that holds it, relative to the data root
    start: int = 0  # where in the file: byte, row or record; the number of a generated image
    size: int = 0  # bytes to read; 0 if the format of the file records it
    origin: str = ""  # of images that `--add` takes from another place, where names may be the same as in the run
    fault: str = ""  # why there is nothing to read, such as a link to nothing

    @property
    def key(self) -> str:
        """The sample's permanent name. It does not depend on the other images, and sorting by it mixes the classes."""
        return hashlib.blake2b(f"{self.origin}{self.split}/{self.source}".encode(), digest_size=8).hexdigest()


class Reader(Protocol):
    """A reader of the images of a source, on any machine. Readers are small and picklable."""

    @property
    def by_file(self) -> bool:
        """True if a file is read as a whole, so that a shard should draw on few files."""

    def read(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, bytes | Pixels]]:
        """Yield each entry with its encoded bytes or its `(H, W, 3)` levels, in any order."""


@dataclass(frozen=True)
class Dataset:
    """All images of a source: class names in label order, entries, and their reader.

    Attributes:
        classes: names in label order.
        entries: one per image.
        reader: of the entries.
        in_shards: whether each file holds many images, so that another such file beside them is a part of the data set.
        files_read: other files that were used, such as one with the class names.
        left_out: names of what was seen and is not used, by the reason.
    """

    classes: tuple[str, ...]
    entries: list[Entry]
    reader: Reader
    in_shards: bool = False
    files_read: tuple[str, ...] = ()
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def split(self, name: str) -> list[Entry]:
        """Return the entries of one split in the order in which they are packed."""
        chosen = sorted((e for e in self.entries if e.split == name), key=lambda entry: entry.key)
        return sorted(chosen, key=lambda entry: entry.file) if self.reader.by_file else chosen


def numbered(labels: Iterable[int]) -> tuple[str, ...]:
    """Return the numbers as class names, for labels without names.

    Raises:
        SourceError: the labels are not 0..K-1.
    """
    found = set(labels)
    if min(found) < 0:
        raise SourceError(f"labels must be 0..K-1, found {shown(sorted(label for label in found if label < 0))}: {NUMBER}")
    missing = sorted(set(range(min(max(found), len(found) + SHOWN))) - found)
    if missing:
        raise SourceError(f"labels must be 0..K-1: the largest is {max(found)}, but missing are {shown(missing)}: {NUMBER}")
    return tuple(str(label) for label in range(len(found)))


def check_entries(dataset: Dataset) -> None:
    """Refuse entries with the same name, and labels without a class.

    Raises:
        SourceError: two images have the same name, or labels are not 0..K-1.
    """
    outside = sorted({e.label for e in dataset.entries if not 0 <= e.label < len(dataset.classes)})
    if outside:
        raise SourceError(
            f"labels must be 0..{len(dataset.classes) - 1} for {len(dataset.classes)} classes, found {shown(outside)}: {NUMBER}"
        )
    repeated = [key for key, times in Counter(e.key for e in dataset.entries).items() if times > 1]
    if repeated:
        names = sorted({e.source for e in dataset.entries if e.key in set(repeated[:SHOWN])})
        raise SourceError(f"{len(repeated)} images do not have a name of their own within their split: {shown(names)}")


def restricted(dataset: Dataset, named: Sequence[str]) -> Dataset:
    """Return the data set with the named classes alone, renumbered in the source's order; the whole data set if none is named.

    Raises:
        ValueError: a class is unknown or named twice.
    """
    if not named:
        return dataset
    chosen = choose_classes(named, dataset.classes, "pack.classes")
    labels = {old: new for new, old in enumerate(chosen)}
    entries = [replace(entry, label=labels[entry.label]) for entry in dataset.entries if entry.label in labels]
    return replace(dataset, classes=tuple(dataset.classes[label] for label in chosen), entries=entries)


def check_names(classes: Sequence[str]) -> None:
    """Refuse classes that could not be told apart as the folders of an exported release.

    Raises:
        SourceError: several names are the same, or differ only in case, at the end, or after the part that a folder's name takes.
    """
    if same := alike(classes):
        raise SourceError(
            f"several classes have one name as folders: {shown([repr(name) for name in same])}: rename all but one, or leave them out by "
            "--pack.classes"
        )


def check_classes(classes: Sequence[str], counts: Mapping[str, Mapping[int, int]], note: str = "") -> None:
    """Refuse splits that do not hold images of every class.

    Args:
        classes: names in label order.
        counts: images per split and label.
        note: appended to the message.

    Raises:
        SourceError: fewer than two classes, or a class is missing from a split.
    """

    def lacking(split: str) -> list[str]:
        return [name for label, name in enumerate(classes) if not counts[split].get(label)]

    if len(classes) < 2:
        raise SourceError(f"at least 2 classes are needed, found {len(classes)}: {shown(classes)}{note}")
    without_train, without_test = lacking("train"), lacking("test")
    if len(without_train) == len(classes):
        raise SourceError(f"no training images{note}")
    if only_test := [name for name in without_train if name not in without_test]:
        raise SourceError(f"the test split has classes that training lacks: {shown(only_test)}{note}")
    if without_train:
        raise SourceError(f"classes without training images: {shown(without_train)}: add images or remove the class{note}")
    if without_test and len(without_test) < len(classes):
        raise SourceError(f"the test split lacks classes that training has: {shown(without_test)}{note}")


def count(entries: Iterable[Entry]) -> dict[str, Counter[int]]:
    """Return the number of images per split and label."""
    counts: dict[str, Counter[int]] = {split: Counter() for split in SPLITS}
    for entry in entries:
        counts[entry.split][entry.label] += 1
    return counts


def held_out(entries: Sequence[Entry], fraction: float) -> list[Entry]:
    """Move `fraction` of each class, at least one entry and the first by key, to the test split."""
    moved = []
    sizes = Counter(entry.label for entry in entries)
    for rank, entry in _ranked(entries):
        moved.append(replace(entry, split="test") if rank < max(1, round(fraction * sizes[entry.label])) else entry)
    return moved


def limited(entries: Sequence[Entry], most: int) -> list[Entry]:
    """Return at most `most` entries, evenly over the classes, the first of each class by key."""
    return [entry for _, entry in sorted(_ranked(entries), key=lambda pair: pair[0])[:most]]


def _ranked(entries: Iterable[Entry]) -> Iterator[tuple[int, Entry]]:
    """Yield the entries by key, each with its rank within its class."""
    seen: Counter[int] = Counter()
    for entry in sorted(entries, key=lambda entry: entry.key):
        yield seen[entry.label], entry
        seen[entry.label] += 1
