"""Protection of images that arrive after a run has finished. The images already released do not change.

See `additions` for where they are.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from cluster.executor import Executor
from pipeline.config.schema import RunConfig
from pipeline.shards.tables import stream_column
from pipeline.sources.scan import scan_more
from pipeline.stages import pack, protect
from pipeline.storage.folder import Folder
from pipeline.storage.layout import ADDED, MANIFEST, QUARANTINE, SAMPLES
from pipeline.storage.run import additions
from pipeline.storage.stage import Manifest, read_started

log = logging.getLogger(__name__)


def execute(config: RunConfig, folder: Folder, executor: Executor) -> Manifest | None:
    """Pack and protect the images of `config.add` that the run lacks. Return None if it lacks none.

    An addition that was cut short, or that lacks shards whose crafting failed, is finished first.

    Raises:
        ValueError: the run is not protected yet, another addition was begun and not finished, or the images do not fit the run.
        WorkFailed: work failed for good; finished work is saved.
    """
    base, _ = Manifest.load(folder, "pack"), Manifest.load(folder, "protect")
    there = additions(folder)
    begun = [name for name, addition in there.items() if not addition.exists(f"protect/{MANIFEST}")]
    for name in begun:
        if (source := _source(there[name])) not in (config.add, None):  # None: an earlier start was clearing it
            raise ValueError(f"{there[name].uri} was begun with --add {source} and is not finished: do that first")
    lacking = [name for name in there if name not in begun and _source(there[name]) == config.add and _lacks_shards(there[name])]
    last = int(max(there, default=f"{ADDED}/0").rpartition("/")[2])
    name = next(iter((*begun, *lacking)), f"{ADDED}/{last + 1:04d}")
    known = _known(config, (folder, *(addition for other, addition in there.items() if other != name)))
    dataset = scan_more(config, base.counts["classes"], known)
    if not dataset.entries and name not in there:
        log.info("add: the run has all images of %s", config.add)
        return None
    log.info("add: %d images, in %s", len(dataset.entries), name)
    target = folder.child(name)
    pack.add(config, folder, target, dataset, executor)
    return protect.add(config, folder, target, executor)


def _source(addition: Folder) -> str | None:
    """Return the source of the images."""
    source: str | None = read_started(addition, "pack").get("pack", {}).get("data")
    return source


def _lacks_shards(addition: Folder) -> bool:
    return bool(Manifest.load(addition, "protect").missing)


def _known(config: RunConfig, runs: Iterable[Folder]) -> set[str]:
    """Return the names of the images of `config.add` that the run has packed, in either split, or refused."""
    known: set[str] = set()
    refused = 0
    for run in runs:
        if _source(run) == config.add:
            known.update(stream_column(run.child("pack"), SAMPLES, "source"))
            names = set(stream_column(run.child("pack"), QUARANTINE, "source"))
            known, refused = known | names, refused + len(names)
    if refused:
        log.warning("add: %d images were refused before, and are not tried again: give what was mended another name", refused)
    return known
