"""The files in a source's folder, by name alone."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from pyarrow import fs

from pipeline.sources.dataset import Entry, SourceError
from pipeline.sources.splits import SPLIT_OF
from pipeline.storage.folder import Folder

HIDDEN = re.compile(r"(^|/)\.(?!\./)")  # `..` is not
UNREADABLE = "not readable: change its permissions"


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
        if not _is_folder(folder):
            what = "a file" if folder.exists() else "nothing"
            raise SourceError(f"{folder.uri}: expected a folder, found {what}: give the folder that holds the images, or `generated`")
        lister = _Lister(folder)
        found = lister.inside([folder.path]) if classes is None else _inside_classes(lister, classes)
        if found is None:  # no folder per class, where more is to be entered
            return cls.of(folder)
        prefix = len(folder.path.rstrip("/")) + 1
        named = sorted((info.path[prefix:], info) for info in found)
        hidden = [name for name, _ in named if HIDDEN.search(name)]
        visible = [(name, info) for name, info in named if not HIDDEN.search(name)]
        files = {name: info.size for name, info in visible if info.type == fs.FileType.File}
        unusable = {path[prefix:]: reason for path, reason in sorted(lister.unusable.items())}
        if not (files if classes is None else visible):
            beside = "".join(f", but {name} ({reason})" for name, reason in list(unusable.items())[:1])
            raise SourceError(f"{folder.uri} is empty: no file in it{beside}")
        return cls(folder, files, [name for name, info in visible if info.type == fs.FileType.Directory], unusable, hidden)

    def described(self, name: str) -> str:
        """Return a name, with the reason if it cannot be used."""
        return f"{name} ({self.unusable[name]})" if name in self.unusable else name


class _Lister:
    """One pass over a folder. On a local disk links are followed, and no folder is entered twice."""

    def __init__(self, folder: Folder) -> None:
        """Start with nothing entered."""
        self.folder = folder
        self.unusable: dict[str, str] = {}  # path to reason
        self._entered: dict[tuple[int, int], str] = {}

    def inside(self, paths: Iterable[str], *, recursive: bool = True) -> list[fs.FileInfo]:
        """Return all files and folders inside the folders at these paths."""
        if not self.folder.is_local:
            with self.folder.errors():
                selectors = (fs.FileSelector(path, recursive=recursive) for path in paths)
                return [info for selector in selectors for info in self.folder.filesystem.get_file_info(selector)]
        found: list[fs.FileInfo] = []
        waiting = sorted(paths, key=os.path.islink)  # a link to a folder that is here under its own name is not entered
        for top in waiting:  # which grows by the links to folders
            for parent, folders, files in os.walk(top, onerror=_raise):
                if not self._enter(parent):
                    folders.clear()
                    continue
                found += [info for name in (*folders, *files) if (info := self._look(os.path.join(parent, name)))]
                waiting += [path for name in folders if recursive and os.path.islink(path := os.path.join(parent, name))]
                folders[:] = [name for name in folders if recursive and name[0] != "." and _is_utf8(name)]
        return found

    def _enter(self, path: str) -> bool:
        """Return whether a folder is entered for the first time."""
        status = os.stat(path)
        first = self._entered.setdefault((status.st_dev, status.st_ino), path)
        if first != path:
            self.unusable[path] = f"the folder {first} again"
        return first == path

    def _look(self, path: str) -> fs.FileInfo | None:
        if not _is_utf8(path):
            self.unusable[os.fsencode(path).decode(errors="backslashreplace")] = "its name is not UTF-8: rename it"
            return None
        try:
            status = os.stat(path)
        except OSError as error:
            self.unusable[path] = UNREADABLE if isinstance(error, PermissionError) else "a link to nothing"
            return None
        if stat.S_ISDIR(status.st_mode):
            return fs.FileInfo(path, fs.FileType.Directory)
        if not os.access(path, os.R_OK):
            self.unusable[path] = UNREADABLE
            return None
        if stat.S_ISREG(status.st_mode):
            return fs.FileInfo(path, fs.FileType.File, size=status.st_size)
        self.unusable[path] = "not a file, but a pipe, socket or device"
        return None


def _raise(error: OSError) -> None:
    if isinstance(error, PermissionError):
        raise SourceError(f"{error.filename}: {UNREADABLE}")
    raise error


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that Python could not decode
        return False
    return True


def _inside_classes(lister: _Lister, classes: Collection[str]) -> list[fs.FileInfo] | None:
    """Return what is inside without the folders of other classes; None if the training images are not in a folder per class."""
    top = lister.inside([lister.folder.path], recursive=False)
    directories = [info for info in top if info.type == fs.FileType.Directory]
    splits = {info.path: SPLIT_OF.get(info.base_name.casefold()) for info in directories}
    within = lister.inside([path for path, split in splits.items() if split], recursive=False)
    within_folders = [info for info in within if info.type == fs.FileType.Directory]
    if not any(splits[os.path.dirname(info.path)] == "train" for info in within_folders):
        return None
    deep = [path for path, split in splits.items() if not split]
    deep += [info.path for info in within_folders if info.base_name in classes]
    return [*top, *within, *lister.inside(deep)]


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
