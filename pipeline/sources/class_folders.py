"""Folders of class folders as a source: `train/<class>/*`, `test/<class>/*`, or just `<class>/*`."""

from __future__ import annotations

import logging

from pipeline.sources.dataset import Dataset, Entry
from pipeline.sources.listing import TEST_NAMES, FileReader, Listing

log = logging.getLogger(__name__)


def class_folders(listing: Listing) -> Dataset | None:
    """Return images in one folder per class, under train/ and test/ or val/, or at the top. Labels follow the order of the names."""
    classes, splits, tests = by_class(listing)
    if tests:
        log.info("pack: test images from %s/%s", tests[0], f"; {', '.join(tests[1:])}/ not used" if tests[1:] else "")
    if set(splits["train"]) <= {"train", *TEST_NAMES}:  # images without classes, or no images at all
        return None
    labels = {name: label for label, name in enumerate(classes)}
    entries = [
        Entry(split, labels[name], file, file, 0, listing.files[file])
        for split, folders in splits.items()
        for name, files in folders.items()
        for file in files
    ]
    return Dataset(classes, entries, FileReader(listing.folder))


def by_class(listing: Listing) -> tuple[tuple[str, ...], dict[str, dict[str, list[str]]], list[str]]:
    """Return the classes, their files by split, and the folders that hold test images. The first of these folders is used."""
    train = listing.by_folder("train/")
    if not train:
        top = listing.by_folder("")
        return tuple(sorted(top)), {"train": top, "test": {}}, []
    tests = {name: folders for name in TEST_NAMES if (folders := listing.by_folder(f"{name}/"))}
    test = next(iter(tests.values()), {})
    return tuple(sorted(train.keys() | test.keys())), {"train": train, "test": test}, list(tests)
