"""The files in a source's folder, by name alone."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from pipeline.sources.dataset import Entry, SourceError
from pipeline.sources.splits import SPLIT_OF
from pipeline.storage.folder import Folder
from pipeline.storage.walk import UNREADABLE, Found, Walk, is_folder

HIDDEN = re.compile(r"(^|/)\.(?!\./)")  # `..` is not


@dataclass(frozen=True)
class Listing:
    """A folder, its files with their sizes in bytes, and the folders inside it. Names are relative.

    Attributes:
        folder: the folder.
        files: every file that can be read, hidden ones left out.
        directories: every folder, hidden ones left out.
        unusable: whatever else has a name there, with the reason: links to nothing, pipes, folders that are listed already.
        hidden: files and folders whose name, or that of a folder above, begins with a dot.
    """

    folder: Folder
    files: dict[str, int]
    directories: list[str]
    unusable: dict[str, str] = field(default_factory=dict)
    hidden: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Folder, classes: Collection[str] | None = None) -> Listing:
        """List a folder at any depth. With classes, only their folders in the folders of splits are entered.

        Raises:
            SourceError: the folder does not exist or is empty.
        """
        if not is_folder(folder):
            what = "a file" if folder.exists() else "nothing"
            raise SourceError(f"{folder.uri}: expected a folder, found {what}: give the folder that holds the images, or `generated`")
        walk = Walk(folder)
        try:
            found = walk.inside([folder.path]) if classes is None else _inside_classes(walk, classes)
        except PermissionError as error:
            raise SourceError(f"{error.filename}: {UNREADABLE}") from error
        if found is None:  # no folder per class, where more is to be entered
            return cls.of(folder)
        prefix = len(folder.path.rstrip("/")) + 1
        named = {each.path[prefix:]: each.size for each in sorted(found, key=lambda each: each.path)}
        hidden = [name for name in named if HIDDEN.search(name)]
        visible = {name: size for name, size in named.items() if not HIDDEN.search(name)}
        files = {name: size for name, size in visible.items() if size is not None}
        unusable = {path[prefix:]: reason for path, reason in sorted(walk.unusable.items())}
        if not (files if classes is None else visible):
            beside = "".join(f", but {name} ({reason})" for name, reason in list(unusable.items())[:1])
            raise SourceError(f"{folder.uri} is empty: no file in it{beside}")
        return cls(folder, files, [name for name, size in visible.items() if size is None], unusable, hidden)

    def described(self, name: str) -> str:
        """Return a name, with the reason if it cannot be used."""
        return f"{name} ({self.unusable[name]})" if name in self.unusable else name


def _inside_classes(walk: Walk, classes: Collection[str]) -> list[Found] | None:
    """Return what is inside without the folders of other classes; None if the training images are not in a folder per class."""
    top = walk.inside([walk.folder.path], recursive=False)
    splits = {each.path: SPLIT_OF.get(each.name.casefold()) for each in top if each.is_folder}
    within = walk.inside([path for path, split in splits.items() if split], recursive=False)
    folders = [each for each in within if each.is_folder]
    if not any(splits[os.path.dirname(each.path)] == "train" for each in folders):
        return None
    deep = [path for path, split in splits.items() if not split]
    deep += [each.path for each in folders if each.name in classes]
    return [*top, *within, *walk.inside(deep)]


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
