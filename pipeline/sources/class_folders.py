"""Folders of class folders as a source: `train/<class>/*`, `test/<class>/*`, or just `<class>/*`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from pipeline.sources.dataset import Dataset, Entry, SourceError
from pipeline.sources.decoding import IMAGE_SUFFIXES
from pipeline.sources.listing import FileReader, Listing
from pipeline.sources.splits import SPLIT_OF, check_copies, test_split
from pipeline.storage.records import shown

log = logging.getLogger(__name__)

Folders = dict[str, list[str]]  # the files in each folder, at any depth; under "" those in none


@dataclass(frozen=True)
class Classes:
    """The class folders of a source: their names, the files of each by split, and the files that are left out by the reason."""

    names: tuple[str, ...]
    splits: dict[str, Folders]
    test_folder: str | None = None
    left_out: dict[str, list[str]] = field(default_factory=dict)


def class_folders(listing: Listing) -> Dataset | None:
    """Return images in one folder per class, under train/ and test/ or val/, or at the top. Labels follow the order of the names.

    Raises:
        SourceError: it is not clear which folders are splits and which are classes, or a split or class cannot be used.
    """
    found = by_class(listing)
    if found is None:
        return None
    if found.test_folder:
        log.info("pack: test images from %s/", found.test_folder)
    check_copies(listing, found.names)
    labels = {name: label for label, name in enumerate(found.names)}
    entries = [
        Entry(split, labels[name], file, file, 0, listing.files.get(file, 0), fault=listing.unusable.get(file, ""))
        for split, folders in found.splits.items()
        for name, files in folders.items()
        for file in files
    ]
    return Dataset(found.names, entries, FileReader(listing.folder), left_out=found.left_out)


def holds_images(listing: Listing) -> list[str]:
    """Return the names of several folders that hold files named like images; nothing if at most one folder does."""
    images = {name: size for name, size in listing.files.items() if _is_image(name)}
    tree = _tree(Listing(listing.folder, images, []))
    inner = {name for top, folders in tree.items() if top.casefold() in SPLIT_OF for name in _inner(folders)}
    return sorted(tree if len(tree) > 1 else inner if len(inner) > 1 else [])


def by_class(listing: Listing) -> Classes | None:
    """Return the class folders of a listing; None if images are not in folders of classes.

    Raises:
        SourceError: see `class_folders`.
    """
    tree = _tree(listing)
    if set(map(str.casefold, tree)) <= SPLIT_OF.keys() and not any(_inner(folders) for folders in tree.values()):
        return None  # images without classes, or no images at all
    splits: dict[str, str] = {}
    for name in tree:
        split = SPLIT_OF.get(name.casefold())
        if split and _inner(tree[name]):
            if split in splits:
                raise SourceError(
                    f"{listing.folder.uri}: {splits[split]}/ and {name}/ are both named for the same split: join or rename them"
                )
            splits[split] = name
    _check_links(listing, splits.values())
    if not splits:
        _check_level(listing, tree)
        top = {name: [file for files in folders.values() for file in files] for name, folders in tree.items()}
        return Classes(tuple(sorted(top)), {"train": top, "test": {}})
    if "train" not in splits:
        raise SourceError(f"{listing.folder.uri} has {shown(list(splits.values()))}/ with a folder per class, but no train/")
    _check_beside(listing, tree, splits)
    for name in splits.values():
        _check_level(listing, _tree(listing, f"{name}/"), f"{name}/")
    chosen, left_out = test_split({split: [f for files in tree[name].values() for f in files] for split, name in splits.items()})
    train = _classes(tree[splits["train"]])
    test = _classes(tree[splits[chosen]]) if chosen else {}
    return Classes(tuple(sorted(train.keys() | test.keys())), {"train": train, "test": test}, splits.get(chosen or ""), left_out)


def _tree(listing: Listing, inside: str = "") -> dict[str, Folders]:
    """Return the files by the first two folders of their names, without `inside`, with which all of these begin."""
    tree: dict[str, Folders] = {}
    for name in listing.directories:
        top, _, rest = name.removeprefix(inside).partition("/")
        if name.startswith(inside):
            folders = tree.setdefault(top, {})
            if rest and "/" not in rest:
                folders.setdefault(rest, [])
    for name in (*listing.files, *listing.unusable):
        top, _, rest = name.removeprefix(inside).partition("/")
        if rest and name.startswith(inside):
            second, slash, _ = rest.partition("/")
            tree.setdefault(top, {}).setdefault(second if slash else "", []).append(name)
    return tree


def _inner(folders: Folders) -> set[str]:
    return folders.keys() - {""}


def _is_image(name: str) -> bool:
    return name.rpartition(".")[2].casefold() in IMAGE_SUFFIXES


def _classes(folders: Folders) -> Folders:
    return {name: files for name, files in folders.items() if name}


def _check_links(listing: Listing, splits: Collection[str]) -> None:
    """Refuse a class or a split that cannot be entered."""
    for name, reason in listing.unusable.items():
        folder, _, last = name.rpartition("/")
        if (folder in splits or not folder) and "." not in last:
            raise SourceError(f"{listing.folder.uri}/{name}: expected the folder of a class or a split, found {reason}: mend or remove it")


def _check_level(listing: Listing, tree: Mapping[str, Folders], inside: str = "") -> None:
    """Refuse folders at the top, or inside a split, that look like splits, or like whole data sets, and not like classes."""
    uri = listing.folder.uri
    inner = {name: _inner(folders) for name, folders in tree.items()}
    bare = [name for name, folders in tree.items() if not any(map(_is_image, folders.get("", ())))]  # without images of their own
    for name in bare:
        if any(SPLIT_OF.get(folder.casefold()) == "train" for folder in inner[name]):
            raise SourceError(f"{uri}: {inside}{name}/ has a train folder in it, and is no class: give {uri}/{inside}{name}")
    for name in tree:
        common = sorted(inner[name] & (tree.keys() - {name}))
        if len(common) > (name not in bare):
            raise SourceError(f"{uri}: {inside}{name}/ has folders named like those beside it, {shown(common)}: join them, or move it away")
    times = Counter(folder for name in bare for folder in inner[name])
    alike = [inside + name for name in bare if sum(times[folder] > 1 for folder in inner[name]) > 1]
    if len(alike) > 1:
        repeated = sorted(folder for folder, count in times.items() if count > 1)
        raise SourceError(
            f"{uri}: the folders {shown(alike)} have the same folders in them, {shown(repeated)}, so that either may be the "
            "classes: name splits train/ and test/, or give the folder of one, or put the images of a class into one folder"
        )


def _check_beside(listing: Listing, tree: Mapping[str, Folders], splits: Mapping[str, str]) -> None:
    """Refuse folders beside the splits that look like splits too."""
    classes = _inner(tree[splits["train"]])
    for name, folders in tree.items():
        if name in splits.values():
            continue
        if common := sorted(_inner(folders) & classes):
            raise SourceError(
                f"{listing.folder.uri}: {name}/ has folders of classes in it ({shown(common)}), as {splits['train']}/ has, and is neither "
                "train/ nor test/: rename or move it"
            )
        if name.casefold() in SPLIT_OF and folders:
            raise SourceError(f"{listing.folder.uri}: {name}/ is named for a split, but has no class folders: sort its images or move it")
