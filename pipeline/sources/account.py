"""The account of a scan: every file that was seen is used, or named, or stops the start if it looks like a part of the data set."""

from __future__ import annotations

import logging
import re

from pipeline.sources.dataset import Dataset, SourceError
from pipeline.sources.listing import Listing
from pipeline.sources.splits import FIRST_WORD, SPLIT_OF
from pipeline.storage.records import shown

log = logging.getLogger(__name__)

UNFINISHED = r"(\.(incomplete|part|partial|crdownload|download|filepart|tmp|temp|aria2|gz|bz2|xz|zst|\d+))?"
SHARD = re.compile(rf"\.(tar|tgz|parquet){UNFINISHED}$", re.IGNORECASE)
DIGITS = re.compile(r"\d+")


def account(listing: Listing, dataset: Dataset) -> None:
    """Warn of the files that the data set does not use.

    Raises:
        SourceError: some of them look like parts of it: shards, or files with the name of a used one but for the number.
    """
    used = {entry.file for entry in dataset.entries}.union(dataset.files_read)
    known = {name for names in dataset.left_out.values() for name in names}
    rest = sorted((listing.files.keys() | listing.unusable.keys()) - used - known)
    numbered = {DIGITS.sub("#", name) for name in rest if DIGITS.search(name)}
    alike = numbered and numbered & {DIGITS.sub("#", name) for name in used}
    parts = [name for name in rest if _is_shard(name, listing, dataset) or (alike and DIGITS.sub("#", name) in alike)]
    if parts:
        raise SourceError(
            f"{listing.folder.uri}: {shown(list(map(listing.described, parts)))}: looks like a part of the data set, but cannot be used "
            f"beside {sorted(used)[0]}: name it like that one, finish the download, or move it away"
        )
    groups = {"no part of the data set": list(map(listing.described, rest)), "hidden": listing.hidden, **dataset.left_out}
    for reason, names in groups.items():
        if names:
            log.warning("pack: %s: %d left out (%s): %s", listing.folder.uri, len(names), reason, shown(names))


def _is_shard(name: str, listing: Listing, dataset: Dataset) -> bool:
    """Return whether a name is that of a shard that belongs to the data set. The archive from which a folder was unpacked does not."""
    word = FIRST_WORD.match(name.rpartition("/")[2].casefold())
    of_split = word is not None and word[0] in SPLIT_OF and SHARD.sub("", name) not in listing.directories
    return bool(SHARD.search(name)) and (dataset.in_shards or of_split)
