"""A comparison as files: tables, pictures, and one page that needs no server and makes no request."""

from __future__ import annotations

import base64
import io
import os
from urllib.parse import quote

from pyarrow import csv

from pipeline.pages import html
from pipeline.results.comparison import EXPLAINED, SCHEMA, Comparison, made, measured, rows, without_release
from pipeline.shards.tables import rows_to_table, write_table
from pipeline.storage.folder import Folder
from pipeline.storage.layout import COMPARISON_CSV, COMPARISON_PARQUET, PAGE
from pipeline.storage.records import shown

PICTURES = ("accuracy", "cost")
SHOWN = 8  # runs and victims that a text names
VERSION = 7  # of tables, page and pictures; raised with what they show, so that a sweep renews those of an earlier version


def write(comparison: Comparison, folder: Folder, title: str) -> list[str]:
    """Write the comparison into a folder, over an earlier one; return the names of the files.

    Raises:
        OSError: storage refused.
    """
    drawn = {"light": _pictures(comparison), "dark": _pictures(comparison, dark=True)}
    table = rows_to_table(rows(comparison), SCHEMA)
    write_table(folder, COMPARISON_PARQUET, table)
    stream = io.BytesIO()
    csv.write_csv(table, stream)
    files = {f"{name}.png": png for name, png in drawn["light"].items()}
    files |= {COMPARISON_CSV: stream.getvalue(), PAGE: _page(comparison, title, drawn, _links(comparison, folder)).encode()}
    for name, data in files.items():
        folder.write(name, data)
    for name in (f"{name}.png" for name in PICTURES):
        if name not in files and folder.exists(name):
            folder.remove(name)  # of the earlier comparison, about other runs
    return [COMPARISON_PARQUET, *files]


def _pictures(comparison: Comparison, *, dark: bool = False) -> dict[str, bytes]:
    """Return the PNGs by names of `PICTURES`; some runs have none."""
    if not comparison.victims:
        return {}
    from pipeline.pages import canvas, comparison_figures  # matplotlib takes seconds to load: a table should not wait for it

    theme = canvas.DARK if dark else canvas.LIGHT
    drawn = {"accuracy": comparison_figures.accuracies(comparison, theme)}
    if comparison_figures.has_costs(comparison):
        drawn["cost"] = comparison_figures.cost(comparison, theme)
    return drawn


def _links(comparison: Comparison, folder: Folder) -> dict[str, str]:
    """Return where the reports of the runs are as seen from the page, by the names of the runs; those on other storage have no link."""
    if not folder.is_local:
        return {}
    there = {name: run.folder for name, run in comparison.runs.items() if run.folder.is_local and run.folder.exists(f"report/{PAGE}")}
    return {name: quote(os.path.relpath(f"{run.path}/report/{PAGE}", folder.path)) for name, run in there.items()}


def _alt_texts(comparison: Comparison) -> dict[str, str]:
    """Return what is to be seen in each picture, with its figures."""
    pairs = [(name, pair) for name, run in comparison.runs.items() for pair in run.pairs if pair.name in comparison.drawn]
    ends = [f"{name}, {pair.name}: {pair.clean.last} % from originals, {pair.protected.last} % from the release" for name, pair in pairs]
    spent = [
        f"{name}: {run.gradients_per_image:,.4g} gradients an image, {run.of_release[0].protected.last} %"
        for name, run in comparison.runs.items()
        if run.of_release
    ]
    return {
        "accuracy": f"Points of accuracy, a line for each run: {shown(ends, SHOWN)}.",
        "cost": f"Points of accuracy against cost: {shown(spent, SHOWN)}.",
    }


def _page(comparison: Comparison, title: str, drawn: dict[str, dict[str, bytes]], links: dict[str, str]) -> str:
    left = len(comparison.victims) - len(comparison.drawn)
    return html.render(
        "comparison.html.j2",
        title=title,
        links=links,
        alts=_alt_texts(comparison),
        not_drawn=f" {left} more victims are in the table alone." if left else "",
        warnings=comparison.warnings,
        made=made(comparison),
        costs=EXPLAINED,
        measured=measured(comparison),
        without_release=without_release(comparison),
        places={name: run.folder.uri for name, run in comparison.runs.items()},
        pictures={name: {theme: base64.b64encode(drawn[theme][name]).decode() for theme in drawn} for name in drawn["light"]},
    )
