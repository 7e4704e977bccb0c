"""Names of files and folders for anything that has a name of its own, such as a class."""

from __future__ import annotations

import re
from collections.abc import Iterable
from unicodedata import normalize

UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')  # in a file's name, on one system or another
LONGEST = 120  # bytes of one part of a name; most filesystems stop at 255 for the whole


def safe(name: str) -> str:
    """Return a name for one file or folder that cannot lead out of its folder."""
    short = UNSAFE.sub("_", name).encode()[:LONGEST].decode(errors="ignore")
    return short.strip(". ") or "_"


def alike(names: Iterable[str]) -> list[str]:
    """Return the first names that would be one folder where neither case nor the writing of accents counts; nothing if all differ."""
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(normalize("NFC", safe(name).casefold()), []).append(name)
    return next((same for same in folders.values() if len(same) > 1), [])
