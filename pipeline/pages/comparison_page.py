"""A comparison as files: tables, pictures, and one page that needs no server and makes no request."""

from __future__ import annotations

import base64
import io

from pyarrow import csv

from pipeline.pages import html
from pipeline.results.comparison import EXPLAINED, SCHEMA, Comparison, made, measured, rows, without_release
from pipeline.shards.tables import rows_to_table, write_table
from pipeline.storage.folder import Folder
from pipeline.storage.layout import COMPARISON_CSV, COMPARISON_PARQUET, PAGE

PICTURES = ("accuracy", "cost")
VERSION = 5  # of tables, page and pictures; raised with what they show, so that a sweep renews those of an earlier version


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
    files |= {COMPARISON_CSV: stream.getvalue(), PAGE: _page(comparison, title, drawn).encode()}
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


def _page(comparison: Comparison, title: str, drawn: dict[str, dict[str, bytes]]) -> str:
    return html.render(
        "comparison.html.j2",
        title=title,
        warnings=comparison.warnings,
        made=made(comparison),
        costs=EXPLAINED,
        measured=measured(comparison),
        without_release=without_release(comparison),
        places={name: run.folder.uri for name, run in comparison.runs.items()},
        pictures={name: {theme: base64.b64encode(drawn[theme][name]).decode() for theme in drawn} for name in drawn["light"]},
    )
