"""Stage 5: what was measured becomes one page that needs no server and makes no request, and a few pictures."""

from __future__ import annotations

import logging

from pipeline.config.schema import RunConfig
from pipeline.pages.gallery import draw
from pipeline.pages.page import render
from pipeline.results.run_results import finished, trained
from pipeline.storage.layout import PAGE
from pipeline.storage.run import Run
from pipeline.storage.stage import Manifest, Stage

log = logging.getLogger(__name__)

VERSION = 4  # of the page and its pictures; raised with what they show, so that those of an earlier version are made again


def execute(config: RunConfig, folder: Run) -> Manifest:
    """Write `report/index.html` and `report/*.png` from whatever stages have finished.

    Raises:
        ValueError: nothing has finished yet, or what a stage recorded is damaged.
    """
    found = finished(folder)
    if not found:
        raise ValueError(f"there is nothing to report in {folder.uri}: run at least the pack stage first (--stages pack report)")
    # A report is quick and holds nothing of its own: when there is something new to show, it is made again without asking.
    there = trained(folder, found)
    stage = Stage(folder, "report", {"version": VERSION, **there.unfinished}, seed=config.seed, inputs=tuple(found), overwrite=True)
    if stage.manifest:
        return stage.manifest
    drawn = {"light": draw(folder, found), "dark": draw(folder, found, dark=True)}
    for name, png in drawn["light"].items():
        stage.folder.write(f"{name}.png", png)
    page = render(config, folder, found, drawn)
    stage.folder.write(PAGE, page.encode())
    return stage.finish({"pictures": sorted(drawn["light"]), "bytes": len(page.encode())})
