"""CIFAR-10 and CIFAR-100 as their authors publish them: pickled batches, or flat binary records."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.shards.pixels import Pixels
from pipeline.sources.dataset import Dataset, Entry, SourceError
from pipeline.sources.listing import Listing
from pipeline.storage.folder import Folder
from pipeline.storage.records import shown

PIXELS = 3 * 32 * 32  # bytes: the red, then the green, then the blue plane
RECONSTRUCT = np.empty(0).__reduce__()[0]
HARMLESS = {
    ("numpy.core.multiarray", "_reconstruct"): RECONSTRUCT,  # as written by NumPy 1
    ("numpy._core.multiarray", "_reconstruct"): RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


@dataclass(frozen=True)
class Form:
    """One of the four published folders."""

    folder: str
    train: tuple[str, ...]
    test: str
    names: str  # the file with the class names
    names_field: bytes = b""  # in pickled batches
    labels_field: bytes = b""
    label_bytes: int = 0  # in binary records, before the pixels; the last of them is the label


BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
FORMS = (
    Form("cifar-10-batches-py", BATCHES, "test_batch", "batches.meta", b"label_names", b"labels"),
    Form("cifar-100-python", ("train",), "test", "meta", b"fine_label_names", b"fine_labels"),
    Form("cifar-10-batches-bin", tuple(f"{name}.bin" for name in BATCHES), "test_batch.bin", "batches.meta.txt", label_bytes=1),
    Form("cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", label_bytes=2),
)


@dataclass(frozen=True)
class CifarReader:
    """A reader of whole batches."""

    folder: Folder
    form: Form
    by_file: bool = True

    def read(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Pixels]]:
        """Yield each entry with its `(32, 32, 3)` levels."""
        for file, inside in groupby(sorted(entries, key=lambda e: (e.file, e.start)), key=lambda e: e.file):
            planes = load(self.folder, file, self.form)[0]
            for entry in inside:
                yield entry, np.ascontiguousarray(planes[entry.start].reshape(3, 32, 32).transpose(1, 2, 0))


def find(listing: Listing) -> Dataset | None:
    """Return every record of a published CIFAR folder, given the folder or its parent; None for any other folder.

    Raises:
        SourceError: a batch is missing or damaged.
    """
    found = [
        (form, prefix)
        for form in FORMS
        for prefix in ("", f"{form.folder}/")
        if {prefix + form.names, prefix + form.train[0]} <= listing.files.keys()
    ]
    if len(found) > 1:
        raise SourceError(f"{listing.folder.uri} has several CIFAR folders, {shown([form.folder for form, _ in found])}: give one of them")
    return _dataset(listing, *found[0]) if found else None


def _dataset(listing: Listing, form: Form, prefix: str) -> Dataset:
    files = [("train", prefix + name) for name in form.train] + [("test", prefix + form.test)]
    if missing := [listing.described(file) for _, file in files if file not in listing.files]:
        raise SourceError(f"{listing.folder.uri} looks like {form.folder}, but lacks {', '.join(missing)}")
    names = listing.folder.read(prefix + form.names)
    raw = _unpickle(names, form.names).get(form.names_field) if form.names_field else names.split(b"\n")
    if not raw:
        raise SourceError(f"{listing.folder.uri}/{prefix}{form.names} names no classes: expected those of {form.folder}")
    classes = tuple(bytes(name).decode().strip() for name in raw)
    entries = [
        Entry(split, int(label), f"{file}#{row}", file, row)
        for split, file in files
        for row, label in enumerate(load(listing.folder, file, form)[1])
    ]
    reader = CifarReader(listing.folder, form)
    return Dataset(tuple(name for name in classes if name), entries, reader, files_read=(prefix + form.names,))


def load(folder: Folder, file: str, form: Form) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the colour planes `(n, 3072)` and the labels `(n,)` of one batch.

    Raises:
        SourceError: the file is not such a batch.
    """
    data = folder.read(file)
    if form.label_bytes:
        width = form.label_bytes + PIXELS
        if len(data) % width:
            raise SourceError(f"{folder.uri}/{file}: expected records of {width} bytes, got {len(data)} bytes in all")
        records = np.frombuffer(data, np.uint8).reshape(-1, width)
        return records[:, form.label_bytes :], records[:, form.label_bytes - 1].astype(np.int64)
    batch = _unpickle(data, file)
    try:
        planes, labels = batch[b"data"], np.asarray(batch[form.labels_field], np.int64)
        if planes.dtype != np.uint8 or planes.shape != (len(labels), PIXELS):
            raise ValueError(f"data is {planes.dtype} {planes.shape} for {len(labels)} labels")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(f"{folder.uri}/{file} is not a batch of {form.folder}: {error!r}") from error
    return planes, labels


class _Unpickler(pickle.Unpickler):
    """An unpickler that builds NumPy arrays and plain containers alone, because a pickle may otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a function or class that a pickle may call.

        Raises:
            UnpicklingError: the pickle asks for anything else.
        """
        if (module, name) not in HARMLESS:
            raise pickle.UnpicklingError(f"{module}.{name} is not needed for images and was not loaded")
        return HARMLESS[module, name]


def _unpickle(data: bytes, file: str) -> dict[bytes, Any]:
    try:
        content = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise nearly everything
        raise SourceError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise SourceError(f"{file}: expected a dictionary, found {type(content).__name__}")
    return content
