"""Confusion of classes by victims: as a picture, and as a table in CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from pipeline.pages.canvas import FONT, LIGHT, SMALL, Theme, bare, drawing, ink_on, png, shades, shortened

NAMED = 20  # classes whose names have room
NUMBERED = 10  # classes whose cells have room for a number
LONGEST = 12  # characters of a name
MOST_CELLS = 200  # a side; more would be smaller than pixels, and some would not be drawn
Table = Sequence[Sequence[int]]


def classes(tables: Sequence[tuple[str, Sequence[Sequence[int]]]], names: Sequence[str], theme: Theme = LIGHT) -> bytes:
    """Draw the percentage of the test images of each class (rows) that were taken for each class (columns), a panel per table.

    Args:
        tables: title and counts `(K, K)`; a class without test images has an empty row.
        names: of the K classes; where they are very many, several share a cell, which shows the largest percentage among them.
        theme: the colours.
    """
    count, many = len(names), len(tables)
    figure, axes = drawing(3.4 if count <= NAMED else 2.9, theme, 1, many)
    colours = shades(theme)
    shown = [shortened(name, LONGEST) for name in names] if count <= NAMED else []
    size = 8.5 if count <= NUMBERED else 6.5
    for number, (axis, (title, table)) in enumerate(zip(axes, tables, strict=True)):
        counts = np.array(table, dtype=float)
        percents = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
        block = -(-count // MOST_CELLS)
        axis.imshow(_largest(percents, block), cmap=colours, vmin=0, vmax=100, interpolation="none")
        bare(axis)
        axis.set_title(title, loc="left", color=theme.ink, fontsize=FONT)
        axis.set_xticks(range(len(shown)), shown, rotation=90, fontsize=size)
        named = [] if number else shown  # once, for all panels
        axis.set_yticks(range(len(named)), named, fontsize=size)
        axis.set_xlabel("taken for" + (f" (largest of {block} × {block})" if block > 1 else ""), fontsize=SMALL)
        for i, j in product(range(count), repeat=2) if count <= NUMBERED else ():
            if round(percents[i, j]):
                ink = ink_on(colours(percents[i, j] / 100))
                axis.text(j, i, f"{percents[i, j]:.0f}", ha="center", va="center", fontsize=6.5, color=ink)
    axes[0].set_ylabel("test images of", fontsize=SMALL)
    return png(figure)


def _largest(values: NDArray[np.float64], block: int) -> NDArray[np.float64]:
    """Return the largest value of each block; blocks at the right and lower edge may be smaller."""
    starts = np.arange(0, len(values), block)
    return np.asarray(np.maximum.reduceat(np.maximum.reduceat(values, starts, 0), starts, 1), np.float64)


def table(counts: Table, names: Sequence[str]) -> bytes:
    """Return a confusion table `(K, K)` as CSV: for each class its test images, percent correct, and how many were taken for each class."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["class", "test images", "accuracy", *(f"taken for {name}" for name in names)])
    for label, row in enumerate(counts):
        images = sum(row)
        writer.writerow([names[label], images, round(100 * row[label] / images, 2) if images else "", *row])
    return stream.getvalue().encode()


def picture(counts: Table, names: Sequence[str], title: str) -> bytes:
    """Return a confusion table `(K, K)` as a PNG."""
    return classes([(title, counts)], names)
