"""Everything inside a folder, at any depth, hidden files and links among it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

from pyarrow import fs

from pipeline.storage.folder import Folder

UNREADABLE = "not readable: change its permissions"


@dataclass(frozen=True, slots=True)
class Found:
    """A file with its size in bytes, or a folder, which has none. On a local disk the path of a link is its own."""

    path: str
    size: int | None = None

    @property
    def is_folder(self) -> bool:
        """True if it is a folder."""
        return self.size is None

    @property
    def name(self) -> str:
        """The last part of the path."""
        return os.path.basename(self.path)


class Walk:
    """One pass over a folder. On a local disk links are followed, and no folder is entered twice."""

    def __init__(self, folder: Folder) -> None:
        """Start with nothing entered."""
        self.folder = folder
        self.unusable: dict[str, str] = {}  # path to reason
        self._entered: dict[tuple[int, int], str] = {}

    def inside(self, paths: Iterable[str], *, recursive: bool = True) -> list[Found]:
        """Return all files and folders inside the folders at these paths.

        Raises:
            OSError: a folder cannot be read.
        """
        if not self.folder.is_local:
            with self.folder.errors():
                selectors = (fs.FileSelector(path, recursive=recursive) for path in paths)
                return [_found(info) for selector in selectors for info in self.folder.filesystem.get_file_info(selector)]
        found: list[Found] = []
        waiting = sorted(paths, key=os.path.islink)  # a link to a folder that is here under its own name is not entered
        for top in waiting:  # which grows by the links to folders
            for parent, folders, files in os.walk(top, onerror=_raise):
                if not self._enter(parent):
                    folders.clear()
                    continue
                found += [each for name in (*folders, *files) if (each := self._look(os.path.join(parent, name)))]
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

    def _look(self, path: str) -> Found | None:
        if not _is_utf8(path):
            self.unusable[os.fsencode(path).decode(errors="backslashreplace")] = "its name is not UTF-8: rename it"
            return None
        try:
            status = os.stat(path)
        except OSError as error:
            self.unusable[path] = UNREADABLE if isinstance(error, PermissionError) else "a link to nothing"
            return None
        if stat.S_ISDIR(status.st_mode):
            return Found(path)
        if not os.access(path, os.R_OK):
            self.unusable[path] = UNREADABLE
            return None
        if stat.S_ISREG(status.st_mode):
            return Found(path, status.st_size)
        self.unusable[path] = "not a file, but a pipe, socket or device"
        return None


def is_folder(folder: Folder) -> bool:
    """Return whether this is a folder, and not a file or nothing."""
    with folder.errors():
        return bool(folder.filesystem.get_file_info(folder.path).type == fs.FileType.Directory)


def _found(info: fs.FileInfo) -> Found:
    return Found(info.path, info.size if info.type == fs.FileType.File else None)


def _raise(error: OSError) -> NoReturn:
    raise error


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that Python could not decode
        return False
    return True
