"""Stage 5: the measurements become one page that needs no server and makes no request, and a few pictures."""

from __future__ import annotations

import logging
from typing import Any

from pipeline.config.schema import RunConfig
from pipeline.pages.gallery import drawings
from pipeline.pages.page import render
from pipeline.results.run_results import RunResults
from pipeline.storage.layout import PAGE
from pipeline.storage.records import digest
from pipeline.storage.run import Run
from pipeline.storage.stage import Manifest, Stage

log = logging.getLogger(__name__)

VERSION = 7  # of the page and its pictures; raised with what they show, so that a report of an earlier version is made again


def execute(config: RunConfig, folder: Run) -> Manifest:
    """Write `report/index.html` and `report/*.png` from whatever stages have finished.

    Raises:
        ValueError: nothing has finished yet, or a stage's record is damaged.
    """
    return write(config, RunResults.read(folder))


def write(config: RunConfig, results: RunResults) -> Manifest:
    """Do the same from results that were read before."""
    folder = results.folder
    if not results.manifests:
        raise ValueError(f"nothing to report in {folder.uri}: run at least the pack stage first (--stages pack report)")
    # A report is quick to make and holds no data of its own, so new results replace it without a question.
    left: dict[str, Any] = {"unfinished": digest(results.unfinished)} if results.unfinished else {}  # of any number of victims
    left |= {"detected": results.found["detect"]} if "detect" in results.found else {}
    left |= {"certified": results.digest_of("certify")} if "certify" in results.found else {}
    section = {"version": VERSION, "verified": results.found.get("verify"), **left}
    stage = Stage(folder, "report", section, seed=config.seed, inputs=tuple(results.manifests.values()), overwrite=True)
    if stage.manifest:
        return stage.manifest
    drawn = _draw(results)
    for name, png in drawn["light"].items():
        stage.folder.write(f"{name}.png", png)
    page = render(config, results, drawn)
    stage.folder.write(PAGE, page.encode())
    return stage.finish({"pictures": sorted(drawn["light"]), "bytes": len(page.encode())})


def _draw(results: RunResults) -> dict[str, dict[str, bytes]]:
    """Return the PNGs by theme and name."""
    from pipeline.pages.canvas import DARK, LIGHT  # matplotlib takes seconds to load

    pictures = drawings(results)
    return {theme: {name: draw(colours) for name, draw in pictures.items()} for theme, colours in (("light", LIGHT), ("dark", DARK))}
