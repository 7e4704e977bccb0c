"""Decoded shards on the machine's own disk: a training decodes each image once, and reads it from memory-mapped files afterwards.

A file is known by the digest of its shard. It appears whole or not at all, so that a training that is killed leaves nothing half-written.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import stat
import tempfile
import threading
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from pipeline.storage.folder import Folder
from pipeline.storage.layout import decoded_name
from sep.pictures import Images, Pictures, apart, flat

log = logging.getLogger(__name__)

WRITING = threading.Lock()  # two that look for room at once would both take it
FORGOTTEN_SECONDS = 7 * 86400.0  # without use: images of people do not stay on a machine for ever
OF_FREE_SPACE = 0.5  # of the disk, which others need as well


@dataclass(frozen=True)
class DecodedCache:
    """A folder of decoded shards that stays below a size.

    Attributes:
        folder: on the machine's own disk.
        limit: bytes of all files together. Each process looks by itself, so several at a time may pass it by a file each.
        begun: when this training began, in seconds since the epoch. Files not used since give way to others; files used since stay, as
            one that went before it is read again would have been for nothing.
        sound: digests of the shards whose files this training has found whole, by the checksums that torch writes with them.
    """

    folder: Path
    limit: int
    begun: float = field(default_factory=time.time)
    sound: set[str] = field(default_factory=set, compare=False)

    @classmethod
    def of_this_machine(cls, gigabytes: float) -> DecodedCache | None:
        """Return the cache of this user in the folder for temporary files (`TMPDIR`), or None if it is to have no room."""
        if not gigabytes:
            return None
        try:
            folder = Path(tempfile.gettempdir()) / f"decoded-shards-{os.getuid()}"
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
        except OSError as error:
            log.warning("decoded images are not cached on this machine: %s", error)
            return None
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            log.warning("%s belongs to someone else, or is open to others: decoded images are not cached there", folder)
            return None
        cache = cls(folder, int(gigabytes * 1e9))
        for last_used, _, file in cache._files():
            if last_used < cache.begun - FORGOTTEN_SECONDS:
                file.unlink(missing_ok=True)
        return cache

    def read(self, digest: str) -> tuple[Images, Tensor] | None:
        """Return the images of a shard, mapped into memory, and their labels `(B,)`, or None if they are not there."""
        file = self.folder / decoded_name(digest)
        try:
            if digest not in self.sound and (damaged := _damaged(file)):
                raise ValueError(f"{damaged} is damaged")
            levels, labels, sizes = torch.load(file, mmap=True, weights_only=True)
            self.sound.add(digest)
            os.utime(file)
        except FileNotFoundError:
            return None
        except Exception as error:  # which errors zipfile and torch raise on damaged files is not documented
            log.warning("%s cannot be read, and is made anew: %s", file, error)
            file.unlink(missing_ok=True)
            return None
        return (levels if sizes is None else Pictures([picture[0] for picture in apart(levels, sizes)])), labels

    def write(self, digest: str, images: Images, labels: Tensor) -> None:
        """Store a decoded shard, if it fits."""
        stream = io.BytesIO()
        torch.save((flat(images)[0], labels, None if isinstance(images, Tensor) else images.sizes), stream)
        try:
            with WRITING:
                if self._has_room(stream.tell()):
                    Folder.open(str(self.folder)).write(decoded_name(digest), stream)
        except OSError as error:
            log.warning("%s: decoded images are not cached: %s", self.folder, error)

    def _files(self) -> list[tuple[float, int, Path]]:
        """Return when each file was last used, its bytes, and its path."""
        files = []
        for file in self.folder.iterdir():
            try:
                found = file.stat()
            except FileNotFoundError:  # another training was faster
                continue
            files.append((found.st_mtime, found.st_size, file))
        return files

    def _has_room(self, size: int) -> bool:
        """Remove files of earlier trainings, and of killed ones, until the space suffices. Return whether it does."""
        files = self._files()
        used = sum(each for _, each, _ in files)
        limit = min(self.limit, used + OF_FREE_SPACE * shutil.disk_usage(self.folder).free)
        for last_used, each, file in sorted(files):
            if used + size <= limit or last_used >= self.begun:
                break
            file.unlink(missing_ok=True)
            used -= each
        return used + size <= limit


def _damaged(file: Path) -> str | None:
    """Return the first part of a file of torch that is not what was written; None if all are."""
    with zipfile.ZipFile(file) as parts:
        return parts.testzip()
