"""What one victim made of each class, to be browsed beside its curves: a table, and a picture of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

Table = Sequence[Sequence[int]]


def table(counts: Table, names: Sequence[str]) -> bytes:
    """A confusion table `(K, K)` as CSV: of each true class its test images, percent correct, and how many were taken for each class."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["class", "test images", "accuracy", *(f"taken for {name}" for name in names)])
    for label, row in enumerate(counts):
        images = sum(row)
        writer.writerow([names[label], images, round(100 * row[label] / images, 2) if images else "", *row])
    return stream.getvalue().encode()


def picture(counts: Table, names: Sequence[str], title: str) -> bytes:
    """The same as a PNG."""
    from pipeline import class_figures  # matplotlib takes seconds to load

    return class_figures.classes([(title, counts)], names)
