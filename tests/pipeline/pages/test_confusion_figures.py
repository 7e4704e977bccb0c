"""The picture of the victims' confusion table, read back from its pixels."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex

from pipeline.pages import canvas, confusion_figures
from pipeline.pages.canvas import DARK, LIGHT, Theme
from tests.fixtures.drawn import decoded, share

NAMES = [f"class {i}" for i in range(10)]


def shifted(percent: int, by: int) -> list[list[int]]:
    """Return a table in which a percentage of each class is taken for the one `by` places on. The last class has no test images."""
    table = np.zeros((10, 10), int)
    for i in range(9):
        table[i, i] += 2 * (100 - percent)
        table[i, (i + by) % 10] += 2 * percent
    return table.tolist()


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_a_shift_of_the_classes_is_a_diagonal_of_its_own(theme: Theme) -> None:
    picture = decoded(confusion_figures.classes([("clean", shifted(0, 5)), ("protected", shifted(100, 5))], NAMES, theme))
    full = to_hex(canvas.shades(theme)(1.0))
    ink = np.array([int(full[i : i + 2], 16) for i in (1, 3, 5)])
    dark = (np.abs(picture.astype(int) - ink) <= 3).all(-1)
    rows, columns = np.nonzero(dark)
    left = columns < np.median(columns)
    assert np.corrcoef(rows[left], columns[left])[0, 1] > 0.98  # from the upper left to the lower right
    assert np.corrcoef(rows[~left], columns[~left])[0, 1] < -0.3  # in two halves


def test_percent_is_of_the_images_of_a_class_and_names_are_left_out_where_there_is_no_room() -> None:
    def paper(count: int) -> float:
        table = np.eye(count, dtype=int).tolist()
        return share(decoded(confusion_figures.classes([("one", table)], [f"a long name of {i}" for i in range(count)])), LIGHT.paper)

    half = to_hex(canvas.shades(LIGHT)(0.5))
    picture = decoded(confusion_figures.classes([("one", shifted(50, 5))], NAMES))
    assert share(picture, half) > 0.02
    assert share(picture, to_hex(canvas.shades(LIGHT)(1.0))) < 0.001
    assert paper(21) > paper(20) + 0.01


@pytest.mark.parametrize("count", [999, 401, 201, 200])
def test_of_very_many_classes_no_part_of_a_diagonal_is_lost(count: int) -> None:
    table = (100 * np.roll(np.eye(count, dtype=int), count // 2, 1)).tolist()
    picture = decoded(confusion_figures.classes([("clean", table), ("protected", table)], [str(i) for i in range(count)]))
    ink = [int(LIGHT.clean[i : i + 2], 16) for i in (1, 3, 5)]
    rows = np.unique(np.nonzero((np.abs(picture.astype(int) - ink) <= 3).all(-1))[0])
    assert len(rows) > 300
    assert (np.diff(rows) == 1).all()


def test_the_largest_of_a_block_is_kept_also_at_the_edge() -> None:
    assert confusion_figures._largest(np.arange(9.0).reshape(3, 3), 2).tolist() == [[4, 5], [7, 8]]
    assert confusion_figures._largest(np.eye(3), 1).tolist() == np.eye(3).tolist()


def test_names_are_no_formulas() -> None:
    names = [r"$\frac{$", "a $100 or $200", "_", *NAMES[3:]]
    picture, without = (
        decoded(confusion_figures.classes([(title, shifted(50, 5))], names)) for title, names in (("one $ two $", names), ("one", NAMES))
    )
    assert picture.shape == without.shape
    assert not np.array_equal(picture, without)
