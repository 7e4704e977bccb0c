"""Data that grows: images added to a finished run are protected like the others, and what is released is not touched.

See `added` for where they are.
"""

from __future__ import annotations

import json
import logging

from pipeline import pack, protect
from pipeline.added import ADDED, additions
from pipeline.config import RunConfig
from pipeline.shards import read_table
from pipeline.sources import scan_more
from pipeline.stage import MANIFEST, STARTED, Manifest
from pipeline.storage import Folder

log = logging.getLogger(__name__)


def run(config: RunConfig, folder: Folder) -> Manifest | None:
    """Pack and protect what `config.add` has and the run has not; None if there is nothing.

    Raises:
        ValueError: the run is not protected yet, another addition was begun and not finished, or the images do not fit the run.
        WorkFailed: work failed for good; what is finished is kept.
    """
    base, _ = Manifest.load(folder, "pack"), Manifest.load(folder, "protect")
    there = additions(folder)
    begun = [addition for addition in there if not addition.exists(f"protect/{MANIFEST}")]
    finished = [addition for addition in there if addition not in begun]
    for addition in begun:
        source = json.loads(addition.read(f"pack/{STARTED}")).get("pack", {}).get("data")
        if source not in (config.add, None):  # None: it was being cleared
            raise ValueError(f"{addition.uri} was begun with --add {source} and is not finished: do that first")
    last = int(there[-1].path.rsplit("/", 1)[1]) if there else 0
    target = begun[0] if begun else folder.child(ADDED).child(f"{last + 1:04d}")
    known = {key for run in (folder, *finished) for key in read_table(run.child("pack"), "samples.parquet", ["key"])["key"].to_pylist()}
    dataset = scan_more(config, base.counts["classes"], known)
    if not dataset.entries and not begun:
        log.info("add: the run has all images of %s", config.add)
        return None
    log.info("add: %d images, into %s", len(dataset.entries), target.uri)
    pack.add(config, folder, target, dataset)
    return protect.add(config, folder, target)
