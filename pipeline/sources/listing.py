"""The files in a source's folder, by name alone."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from pyarrow import fs

from pipeline.sources.dataset import Entry, SourceError
from pipeline.storage.folder import Folder
from pipeline.storage.records import shown

log = logging.getLogger(__name__)

TEST_NAMES = ("test", "validation", "val")  # the first one found is the test split
SPLIT_NAMES = ("train", *TEST_NAMES)


@dataclass(frozen=True)
class Listing:
    """A folder, its files with their sizes in bytes, and the folders inside it. Names are relative; hidden ones are left out."""

    folder: Folder
    files: dict[str, int]
    directories: list[str]

    @classmethod
    def of(cls, folder: Folder, classes: Collection[str] | None = None) -> Listing:
        """List a folder at any depth. With classes, only their folders in train/ and the test folders are entered.

        Raises:
            SourceError: the folder does not exist or is empty.
        """
        if not _is_folder(folder):
            raise SourceError(f"no folder at {folder.uri}: give the folder that holds the images, or `generated`")
        prefix = len(folder.path.rstrip("/")) + 1
        found = _inside(folder, folder.path) if classes is None else _inside_classes(folder, classes)
        visible = sorted((i.path[prefix:], i) for i in found if not re.search(r"(^|/)\.", i.path[prefix:]))
        files = {name: info.size for name, info in visible if info.type == fs.FileType.File}
        if not (files if classes is None else visible):
            raise SourceError(f"{folder.uri} is empty: no file in it")
        return cls(folder, files, [name for name, info in visible if info.type == fs.FileType.Directory])

    def by_folder(self, prefix: str) -> dict[str, list[str]]:
        """Return the folders directly under `prefix` ("" or ending in a slash), each with all its files at any depth."""
        inside: dict[str, list[str]] = {}
        for name in self.directories:
            if name.startswith(prefix) and "/" not in name[len(prefix) :]:
                inside[name[len(prefix) :]] = []
        for file in self.files:
            top, slash, _ = file[len(prefix) :].partition("/")
            if file.startswith(prefix) and slash:
                inside.setdefault(top, []).append(file)
        return inside

    def by_split(self, suffix: str) -> dict[str, list[str]] | None:
        """Return the files named `train-*`, `test-*`, `validation-*` or `val-*`, here or in one folder inside; None without such files.

        Raises:
            SourceError: several folders hold such files, or none is for training.
        """
        pattern = re.compile(rf"(?:([^/]+)/)?(train|{'|'.join(TEST_NAMES)})(?:[-_.][^/]*)?{re.escape(suffix)}")
        found: dict[str, dict[str, list[str]]] = {}
        for name in self.files:
            if match := pattern.fullmatch(name):
                found.setdefault(match[1] or "", {}).setdefault(match[2], []).append(name)
        if not found:
            return None
        if "" not in found and len(found) > 1:
            raise SourceError(f"{self.folder.uri} has *{suffix} files in several folders: give one of {shown(sorted(found))}")
        splits = found.get("") or next(iter(found.values()))
        if "train" not in splits:
            raise SourceError(f"{self.folder.uri} has *{suffix} files, but none named train-*{suffix}")
        tests = [name for name in TEST_NAMES if name in splits]
        if tests:
            log.info("pack: test images from %s*%s%s", tests[0], suffix, f"; {', '.join(tests[1:])} not used" if tests[1:] else "")
        return {"train": splits["train"], **({"test": splits[tests[0]]} if tests else {})}


def _inside(folder: Folder, path: str, *, recursive: bool = True) -> list[fs.FileInfo]:
    with folder.errors():
        return list(folder.filesystem.get_file_info(fs.FileSelector(path, recursive=recursive)))


def _inside_classes(folder: Folder, classes: Collection[str]) -> list[fs.FileInfo]:
    top = _inside(folder, folder.path, recursive=False)
    directories = [info for info in top if info.type == fs.FileType.Directory]
    splits = {info.base_name: _inside(folder, info.path, recursive=False) for info in directories if info.base_name in SPLIT_NAMES}
    if not any(info.type == fs.FileType.Directory for info in splits.get("train", [])):  # not a folder per class
        return _inside(folder, folder.path)
    within = [info for inside in splits.values() for info in inside]
    deep = [info for info in directories if info.base_name not in splits]
    deep += [info for info in within if info.type == fs.FileType.Directory and info.base_name in classes]
    return [*top, *within, *(found for info in deep for found in _inside(folder, info.path))]


def _is_folder(folder: Folder) -> bool:
    with folder.errors():
        return bool(folder.filesystem.get_file_info(folder.path).type == fs.FileType.Directory)


@dataclass(frozen=True)
class FileReader:
    """A reader of whole files, or byte ranges of them."""

    folder: Folder
    by_file: bool = False

    def read(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, bytes]]:
        """Yield each entry with its encoded bytes. Every file is opened once."""
        for file, inside in groupby(sorted(entries, key=lambda e: (e.file, e.start)), key=lambda e: e.file):
            with self.folder.stream(file) as stream:
                for entry in inside:
                    stream.seek(entry.start)
                    yield entry, bytes(stream.read(entry.size))
