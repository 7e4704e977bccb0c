"""Splits by name: the folders and files whose names say that they are for training or for testing."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from pipeline.sources.dataset import SourceError
from pipeline.storage.records import shown

if TYPE_CHECKING:
    from pipeline.sources.listing import Listing

log = logging.getLogger(__name__)

SPLIT_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval"), "validation"),
}
FIRST_WORD = re.compile(r"[a-z]+(?=$|[-_.])")
OF_A_SET = re.compile(r"(.*?)(\d+)-of-(\d+)")
# Added to the name of a second one by browsers and desktops; a bare number only before the end of a file's name.
COPY = re.compile(r"([\s_-]+copy([\s_-]*\(?\d+\)?)?|\s*\(\d+\))(?=\.|$)|\s+\d+(?=\.\w+$)", re.IGNORECASE)
COUNTED = re.compile(r"(.*?)(\d+)(\.[^/]*)")


def shards_by_split(listing: Listing, suffix: str) -> tuple[dict[str, list[str]], dict[str, list[str]]] | None:
    """Return the files named for a split, as in `train-0.tar` or `train/0.tar`, by split; None without such files.

    Args:
        listing: of the source.
        suffix: of the files, in lower case.

    Returns:
        The files of `train` and `test`, and the files left out, by reason.

    Raises:
        SourceError: several folders hold such files, none is for training, one cannot be used, or a set of numbered files is not whole.
    """
    for name, reason in listing.unusable.items():
        if name.casefold().endswith(suffix) and _place(name):
            raise SourceError(f"{listing.folder.uri}/{name} looks like a part of the data set, but cannot be used: {reason}")
    found: dict[str, dict[str, list[str]]] = {}
    for name in listing.files:
        if name.casefold().endswith(suffix) and (place := _place(name)):
            found.setdefault(place[0], {}).setdefault(place[1], []).append(name)
    if not found:
        return None
    if len(found) > 1:
        examples = shown(sorted(files[0] for splits in found.values() for files in list(splits.values())[:1]))
        raise SourceError(f"{listing.folder.uri} has *{suffix} files of splits in several folders ({examples}): give one of the folders")
    splits = next(iter(found.values()))
    if "train" not in splits:
        raise SourceError(f"{listing.folder.uri} has *{suffix} files, but none named train-*{suffix}")
    for files in splits.values():
        check_copies(listing, files)
        _check_sets(listing, files)
    test, left_out = test_split(splits)
    if test:
        log.info("pack: test images from %s", shown(splits[test], 1))
    return {"train": splits["train"], **({"test": splits[test]} if test else {})}, left_out


def test_split(splits: Mapping[str, Iterable[str]]) -> tuple[str | None, dict[str, list[str]]]:
    """Return which split is used for testing, and the files of the other one as what is left out."""
    tests = [name for name in ("test", "validation") if name in splits]
    left_out = {f"test images are taken from {tests[0]} alone": sorted(splits[tests[1]])} if len(tests) > 1 else {}
    return next(iter(tests), None), left_out


def _place(name: str) -> tuple[str, str] | None:
    """Return the folder and the split of a file that is named for a split, or lies in a folder that is."""
    folder, _, file = name.rpartition("/")
    above, _, last = folder.rpartition("/")
    word = FIRST_WORD.match(file.casefold())
    own, outer = SPLIT_OF.get(word[0]) if word else None, SPLIT_OF.get(last.casefold())
    if own and outer and own != outer:
        raise SourceError(f"{name}: expected files of one split in the folder {folder}, found one named for another: rename one of them")
    if outer:
        return above, outer
    return (folder, own) if own else None


def check_copies(listing: Listing, names: Collection[str]) -> None:
    """Refuse shards or classes if some have the name of another and the mark of a copy: `train-0 (1).tar` beside `train-0.tar`.

    Raises:
        SourceError: some are such copies.
    """
    copies = sorted(name for name in names if (plain := COPY.sub("", name)) != name and plain in names)
    if copies:
        raise SourceError(
            f"{listing.folder.uri}: {shown(copies)}: looks like a second copy of {COPY.sub('', copies[0])}, whose images would count "
            "twice: move it away, or give it a name of its own"
        )


def _check_sets(listing: Listing, files: Sequence[str]) -> None:
    """Refuse sets such as `train-00000-of-00002.parquet` that are not whole, or not alone. Name the gaps in other numbers."""
    sets: dict[tuple[str, int], dict[int, re.Match[str]]] = {}
    counted: dict[tuple[str, str], dict[int, re.Match[str]]] = {}
    for file in files:
        if match := OF_A_SET.match(file):
            sets.setdefault((match[1], int(match[3])), {})[int(match[2])] = match
        elif match := COUNTED.fullmatch(file):
            counted.setdefault((match[1], match[3]), {})[int(match[2])] = match
    for (start, total), there in sets.items():
        first = 1 if 0 not in there and total in there else 0
        some = next(iter(there.values()))
        missing = [f"{start}{n:0{len(some[2])}}{_after(some)}" for n in range(first, first + total) if n not in there]
        if missing:
            raise SourceError(
                f"{listing.folder.uri}: {len(missing)} of the {total} files of a set are missing: {shown(missing)}: "
                "fetch them, or rename the others to use them alone"
            )
    members = [file for file in files if OF_A_SET.match(file)]
    repeated = len(members) > sum(map(len, sets.values())) or len(sets) > len({start for start, _ in sets})
    if repeated or 0 < len(members) < len(files):
        raise SourceError(f"{listing.folder.uri} has files of two sets for one split, {shown(sorted(files))}: leave one set")
    for there in counted.values():
        gaps = [f"{m[1]}{n:0{len(m[2])}}{m[3]}" for n, m in _between(there)]
        if 0 < len(gaps) <= len(there):
            log.warning("pack: %s: the numbering of the files has gaps: %s missing", listing.folder.uri, shown(gaps))


def _after(match: re.Match[str]) -> str:
    return match.string[match.end(2) :]


def _between(there: Mapping[int, re.Match[str]]) -> Iterator[tuple[int, re.Match[str]]]:
    """Yield the numbers that are missing between the files, each with a file of the set; at most one more than there are files."""
    numbers = sorted(there)
    left = len(numbers) + 1
    for low, high in pairwise(numbers):
        for number in range(low + 1, min(high, low + 1 + left)):
            left -= 1
            yield number, there[low]
