"""Finding the images: which kind of source a folder is, and every image in it, without decoding any."""

from __future__ import annotations

import logging
import re
import tarfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from pyarrow import fs

from pipeline import cifar_source, generated, parquet_source
from pipeline.config.class_selection import choose_classes, protected_classes
from pipeline.config.schema import RunConfig
from pipeline.dataset import (
    SPLITS,
    Dataset,
    Entry,
    SourceError,
    check_classes,
    check_entries,
    count,
    held_out,
    limited,
    numbered,
    restricted,
)
from pipeline.listing import TEST_NAMES, Listing
from pipeline.shards.tar import content, files, open_tar
from pipeline.storage.folder import Folder
from pipeline.storage.records import shown

log = logging.getLogger(__name__)

UNDERSTOOD = (
    "folders of class folders (train/<class>/* with test/ or val/ beside it, or <class>/* alone), "
    "Parquet files (train-*.parquet, test-*.parquet), WebDataset tars (train-*.tar, test-*.tar), "
    "and the published CIFAR folders"
)
IMAGE_MEMBERS = ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm")
BLOCK = 512  # bytes; what a tar is made of
LABEL_BYTES = 32  # at most, for an integer and the space around it


def scan(config: RunConfig) -> Dataset:
    """Every image to be packed, checked, restricted to the classes wanted, split and limited as configured.

    Raises:
        SourceError: nothing is found, the layout is not understood, or classes, labels and splits do not fit together.
    """
    named = config.pack.classes
    dataset = generated.dataset(config.seed) if config.data == "generated" else find(_listing(Folder.open(config.data), named))
    check_entries(dataset)
    try:
        dataset = restricted(dataset, named)
        if "protect" in config.stages:  # now, and not when the surrogate is trained
            protected_classes(config, dataset.classes)
    except ValueError as error:  # a wrong name is here a fault of what is asked of the source
        raise SourceError(str(error)) from error
    dataset = replace(dataset, entries=_divided(dataset.entries, config))
    check_classes(dataset.classes, count(dataset.entries))
    entries = []
    for split, most in zip(SPLITS, (config.pack.max_train_images, config.pack.max_test_images), strict=True):
        chosen = dataset.split(split)
        if most is not None and most < len(dataset.classes):
            raise SourceError(f"pack.max-{split}-images = {most} leaves classes without images: there are {len(dataset.classes)}")
        kept = chosen if most is None else limited(chosen, most)
        if len(kept) < len(chosen):
            log.warning("pack: only %d of %d %s images are kept (pack.max-%s-images)", len(kept), len(chosen), split, split)
        entries += kept
    return replace(dataset, entries=entries)


def scan_more(config: RunConfig, classes: Sequence[str], known: Collection[str]) -> Dataset:
    """The training images of `config.add` that a run does not have yet, labelled as the run labels their classes.

    An image is known by its place and name: one that was changed under its old name is not packed again.

    Args:
        config: of the run.
        classes: the run's, in label order.
        known: names of the images of this place that the run has, whether it trains on them or measures with them.

    Raises:
        SourceError: nothing is found, the layout is not understood, or there is a class that the run does not have.
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
    """What lies in a folder, but nothing in the class folders of train/ and test/ that are not wanted.

    A full ImageNet has more than a million files, each of which costs time and memory; no other kind of source looks that deep.
    """
    if not named:
        return Listing.of(folder)
    shallow = Listing.of(folder, classes=())
    if not shallow.by_folder("train/"):
        return shallow
    classes, _, _ = _class_folders(shallow)
    try:
        return Listing.of(folder, [classes[label] for label in choose_classes(named, classes, "pack.classes")])
    except ValueError:  # of another kind, or an unknown class, which is refused when the kind is known
        return shallow


def find(listing: Listing) -> Dataset:
    """The data set in a folder, of whichever kind it is.

    Raises:
        SourceError: it is of no known kind, or damaged.
    """
    for kind in (cifar_source.find, parquet_source.find, tars, class_folders):
        if (dataset := kind(listing)) is not None:
            return dataset
    raise SourceError(f"{listing.folder.uri} has no layout that is understood: expected {UNDERSTOOD}")


def _divided(entries: list[Entry], config: RunConfig) -> list[Entry]:
    """The entries with a test split, if there is to be one."""
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


@dataclass(frozen=True)
class FileReader:
    """Reads whole files, or byte ranges of them."""

    folder: Folder
    by_file: bool = False

    def read(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, bytes]]:
        """Each entry with its encoded bytes; every file is opened once."""
        for file, inside in groupby(sorted(entries, key=lambda e: (e.file, e.start)), key=lambda e: e.file):
            with self.folder.stream(file) as stream:
                for entry in inside:
                    stream.seek(entry.start)
                    yield entry, bytes(stream.read(entry.size))


def class_folders(listing: Listing) -> Dataset | None:
    """Images in one folder per class, under train/ and test/ or val/, or at the top; labels in the order of the names."""
    classes, splits, tests = _class_folders(listing)
    if tests:
        log.info("pack: test images from %s/%s", tests[0], f"; {', '.join(tests[1:])}/ not used" if tests[1:] else "")
    if set(splits["train"]) <= {"train", *TEST_NAMES}:  # images without classes; or nothing at all
        return None
    labels = {name: label for label, name in enumerate(classes)}
    entries = [
        Entry(split, labels[name], file, file, 0, listing.files[file])
        for split, folders in splits.items()
        for name, files in folders.items()
        for file in files
    ]
    return Dataset(classes, entries, FileReader(listing.folder))


def _class_folders(listing: Listing) -> tuple[tuple[str, ...], dict[str, dict[str, list[str]]], list[str]]:
    """The classes, the files of each in each split, and the folders that hold test images, of which the first is used."""
    train = listing.by_folder("train/")
    if not train:
        top = listing.by_folder("")
        return tuple(sorted(top)), {"train": top, "test": {}}, []
    tests = {name: folders for name in TEST_NAMES if (folders := listing.by_folder(f"{name}/"))}
    test = next(iter(tests.values()), {})
    return tuple(sorted(train.keys() | test.keys())), {"train": train, "test": test}, list(tests)


def tars(listing: Listing) -> Dataset | None:
    """Images in WebDataset tars, `<key>.png` (or jpg, ...) with an integer in `<key>.cls`; names in classes.txt if it is there.

    Raises:
        SourceError: a tar is damaged, or a sample lacks its image or its label.
    """
    splits = listing.by_split(".tar")
    if splits is None:
        return None
    entries = [entry for split, files in splits.items() for file in files for entry in _index(listing.folder, split, file)]
    if not entries:
        raise SourceError(f"{listing.folder.uri}: the tars hold no samples")
    names = f"{splits['train'][0].rpartition('/')[0]}/classes.txt".lstrip("/")
    if names in listing.files:
        lines = listing.folder.read(names).decode().splitlines()
        classes = tuple(line.strip() for line in lines if line.strip())
    else:
        classes = numbered(entry.label for entry in entries)
    return Dataset(classes, entries, FileReader(listing.folder))


def _index(folder: Folder, split: str, file: str) -> list[Entry]:
    """Where the images lie in one tar, and their labels."""
    where = f"{folder.uri}/{file}"
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    with folder.stream(file) as stream:
        try:
            with open_tar(stream) as tar:
                for member in files(tar):
                    stem, extension = _split_name(member.name)
                    if extension in IMAGE_MEMBERS:
                        if stem in images:
                            raise SourceError(f"{where}: sample {stem!r} has two images, expected one")
                        images[stem] = member
                    elif extension == "cls":
                        if stem in labels:
                            raise SourceError(f"{where}: sample {stem!r} has two labels, expected one")
                        labels[stem] = int(content(tar, member, LABEL_BYTES))
                _check_end(stream, tar.getmembers())
        except SourceError:
            raise
        except (tarfile.TarError, ValueError) as error:
            raise SourceError(f"{where}: damaged, or a .cls member is not an integer ({error})") from error
    if unpaired := sorted(images.keys() ^ labels.keys()):
        raise SourceError(f"{where}: each sample needs an image ({', '.join(IMAGE_MEMBERS)}) and a .cls member; not so {shown(unpaired)}")
    return [Entry(split, labels[stem], f"{file}#{stem}", file, info.offset_data, info.size) for stem, info in images.items()]


def _split_name(name: str) -> tuple[str, str]:
    """Key and lower-case extension of a member, parted at the first dot of its last component, as WebDataset does."""
    match = re.fullmatch(r"((?:.*/)?[^/.]+)\.([^/]*)", name)
    return (match[1], match[2].lower()) if match else (name, "")


def _check_end(stream: fs.FileSystem, members: Sequence[tarfile.TarInfo]) -> None:
    """Refuse a tar that was cut: tarfile takes its end for the end of the archive, and samples would be missing silently."""
    last = members[-1] if members else None
    stream.seek(last.offset_data + -(-last.size // BLOCK) * BLOCK if last else 0)
    if bytes(stream.read(BLOCK)) != bytes(BLOCK):
        raise tarfile.ReadError("the end-of-archive block is missing")
