"""The scan of a source: its kind and all its images, without decoding any."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace

from pipeline.config.batch_sizes import check_batch_sizes
from pipeline.config.class_selection import choose_classes, protected_classes
from pipeline.config.schema import SPLITS, RunConfig
from pipeline.sources import cifar, parquet, textures
from pipeline.sources.account import account
from pipeline.sources.class_folders import by_class, class_folders, holds_images
from pipeline.sources.dataset import (
    Dataset,
    Entry,
    SourceError,
    check_classes,
    check_entries,
    check_names,
    count,
    held_out,
    limited,
    restricted,
)
from pipeline.sources.listing import Listing
from pipeline.sources.tars import tars
from pipeline.storage.folder import Folder
from pipeline.storage.records import shown

log = logging.getLogger(__name__)

UNDERSTOOD = (
    "folders of class folders (train/<class>/* with test/ or val/ beside it, or <class>/* alone), "
    "Parquet files (train-*.parquet, test-*.parquet), WebDataset tars (train-*.tar, test-*.tar), "
    "and the published CIFAR folders"
)


def scan(config: RunConfig) -> Dataset:
    """Return the images to pack: checked, restricted to the wanted classes, split and limited as configured.

    Raises:
        SourceError: no image is found, the layout is not understood, or classes, labels and splits do not fit together.
    """
    named = config.pack.classes
    dataset = textures.dataset(config.seed) if config.data == "generated" else find(_listing(Folder.open(config.data), named))
    check_entries(dataset)
    try:
        dataset = restricted(dataset, named)
        if "protect" in config.stages:  # refuse a wrong class now, and not after packing
            protected_classes(config, dataset.classes)
    except ValueError as error:  # a wrong name is the fault of the command, not of the source
        raise SourceError(str(error)) from error
    check_names(dataset.classes)
    dataset = replace(dataset, entries=_divided(dataset.entries, config))
    check_classes(dataset.classes, count(dataset.entries))
    entries = []
    for split, most in zip(SPLITS, (config.pack.max_train_images, config.pack.max_test_images), strict=True):
        chosen = dataset.split(split)
        if most is not None and most < len(dataset.classes):
            raise SourceError(f"pack.max-{split}-images = {most} leaves classes without images: the source has {len(dataset.classes)}")
        kept = chosen if most is None else limited(chosen, most)
        if len(kept) < len(chosen):
            log.warning("pack: only %d of %d %s images are packed (pack.max-%s-images)", len(kept), len(chosen), split, split)
        entries += kept
    try:
        check_batch_sizes(config, sum(entry.split == "train" for entry in entries))
    except ValueError as error:
        raise SourceError(str(error)) from error
    return replace(dataset, entries=entries)


def scan_more(config: RunConfig, classes: Sequence[str], known: Collection[str]) -> Dataset:
    """Return the training images of `config.add` that a run does not have yet, labelled as the run labels their classes.

    An image is identified by its place and name, so one that was changed under its old name is not packed again.

    Args:
        config: of the run.
        classes: the run's, in label order.
        known: names of the images of this place that the run has, for training or testing.

    Raises:
        SourceError: no image is found, the layout is not understood, or the run lacks a class.
    """
    assert config.add is not None
    dataset = find(_listing(Folder.open(config.add), ()))
    check_entries(dataset)
    if strange := [name for name in dataset.classes if name not in classes]:
        raise SourceError(f"--add: the run has no class {shown(strange)}; its classes are {shown(classes)}: pack a run of its own")
    labels = [classes.index(name) for name in dataset.classes]
    origin = "" if config.add == config.data else f"{config.add}\n"
    found = [replace(entry, label=labels[entry.label], origin=origin) for entry in dataset.split("train")]
    if others := len(dataset.entries) - len(found):
        log.info("add: %d images are not training images, and are left out", others)
    return Dataset(tuple(classes), [entry for entry in found if entry.source not in known], dataset.reader)


def _listing(folder: Folder, named: Sequence[str]) -> Listing:
    """List a folder without the class folders of train/ and test/ that are not wanted.

    A full ImageNet has more than a million files, and each costs time and memory. No other kind of source looks that deep.
    """
    if not named:
        return Listing.of(folder)
    shallow = Listing.of(folder, classes=())
    try:
        found = by_class(shallow)
        if found is None or not found.names:
            return shallow
        return Listing.of(folder, [found.names[label] for label in choose_classes(named, found.names, "pack.classes")])
    except ValueError:  # another kind of source, or an unknown class, which is refused once the kind is known
        return shallow


def find(listing: Listing) -> Dataset:
    """Return the data set in a folder, whatever its kind.

    Raises:
        SourceError: the folder is of no known kind, or of two, or damaged, or has parts of the data set that cannot be used.
    """
    for kind in (cifar.find, parquet.find, tars, class_folders):
        if (dataset := kind(listing)) is not None:
            if kind is not class_folders and (classes := holds_images(listing)):
                raise SourceError(
                    f"{listing.folder.uri} holds two kinds of source, {sorted(e.file for e in dataset.entries[:1])[0]} and images in the "
                    f"folders {shown(classes)}: give a folder with one of them"
                )
            account(listing, dataset)
            return dataset
    raise SourceError(f"{listing.folder.uri} has no layout that is understood: expected {UNDERSTOOD}")


def _divided(entries: list[Entry], config: RunConfig) -> list[Entry]:
    """Return the entries with a test split, if one is asked for."""
    fraction = config.pack.test_fraction
    if any(entry.split == "test" for entry in entries):
        if fraction:
            raise SourceError(f"pack.test-fraction = {fraction} was given, but {config.data} has test images of its own: leave it out")
        return entries
    if fraction:
        return held_out(entries, fraction)
    if "victim" in config.stages:
        raise SourceError(
            f"{config.data} has no test images, which measuring needs: set some aside with --pack.test-fraction 0.1, "
            "or protect without measuring by --stages pack surrogate protect"
        )
    return entries
