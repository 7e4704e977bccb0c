"""The canvas of every picture: sizes that stay readable on a phone, colours for a light and a dark page, axes without clutter."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, PercentFormatter

DPI = 180
WIDTH = 5.4  # inches; narrow enough that labels stay readable on a phone
FONT, SMALL = 10.5, 9.5  # points
APART = 7.0  # percent between two labels at the end of curves


@dataclass(frozen=True)
class Theme:
    """The colours of one kind of page."""

    paper: str
    ink: str
    quiet: str
    clean: str
    protected: str
    several: tuple[str, ...]  # one per network; distinct for the colour-blind too (after Okabe and Ito)


LIGHT = Theme(
    paper="#ffffff",
    ink="#1c2430",
    quiet="#c9d0da",
    clean="#2563eb",
    protected="#c2410c",
    several=("#0072b2", "#c25400", "#00805c", "#a8437f", "#8a6700", "#1f7aa8", "#6b4fa0", "#555f6d"),
)
DARK = Theme(
    paper="#171b22",
    ink="#e6e9ef",
    quiet="#444c59",
    clean="#74a9ff",
    protected="#ff9a5c",
    several=("#56a9e8", "#f0803c", "#2fc49a", "#e08fbf", "#e6c74c", "#8fd3f5", "#b39ae6", "#b8c0cc"),
)


def drawing(height: float, theme: Theme, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure `WIDTH` wide and `height` inches high, without any global state, and its axes row by row."""
    with mpl.rc_context({"font.size": FONT, "axes.labelcolor": theme.ink, "text.color": theme.ink}):
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor=theme.paper, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **options).ravel().tolist()
    for axis in axes:
        axis.set_facecolor(theme.paper)
        axis.tick_params(colors=theme.ink, length=0)
        axis.set_axisbelow(True)
        axis.grid(axis="y", color=theme.quiet, linewidth=0.6, alpha=0.6)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.spines["bottom"].set_color(theme.quiet)
    return figure, axes


def png(figure: Figure) -> bytes:
    """Render a figure as a PNG. Text appears literally: a `$` in the name of a class or a run begins no formula."""
    stream = io.BytesIO()
    with mpl.rc_context({"text.parse_math": False}):  # ticks are only made while drawing
        for text in figure.findobj(Text):
            text.set(parse_math=False)
        canvas: Any = FigureCanvasAgg(figure)  # whose print_png has no types
        canvas.print_png(stream, metadata={"Software": None})  # savefig would lay it out twice
    return stream.getvalue()


def bare(axis: Axes) -> None:
    """Make axes ready for an image: no grid, no frame."""
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)


def shades(theme: Theme) -> LinearSegmentedColormap:
    """Return the colour map from the colour of the page (nothing) to that of clean images (much)."""
    return LinearSegmentedColormap.from_list("shades", [theme.paper, theme.clean])


def contrast(one: Any, other: Any) -> float:
    """Return the contrast of two colours, from 1 to 21, as in WCAG 2.2, which asks for 4.5 of text."""

    def luminance(of: Any) -> float:
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(of)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def ink_on(colour: tuple[float, ...]) -> str:
    """Return black or white, whichever is easier to read on a colour; one of them always has a contrast of 4.5."""
    return max(("#000000", "#ffffff"), key=lambda ink: contrast(ink, colour[:3]))


def shortened(name: str, longest: int) -> str:
    """Return a name without its middle if it is longer: similar names often differ at the end."""
    half = (longest - 1) // 2
    return name if len(name) <= longest else f"{name[: longest - 1 - half]}…{name[-half:]}"


def percent(axis: Axes, step: int = 20) -> None:
    """Let the vertical axis go from 0 to 100 %."""
    axis.set_ylim(0, 102)
    axis.set_yticks(range(0, 101, step))
    axis.yaxis.set_major_formatter(PercentFormatter(decimals=0, symbol=" %"))


def epochs(axis: Axes, count: int, room: float = 0.0, label: str = "epoch") -> None:
    """Put whole epochs from 1 on the horizontal axis, with `room` (a share of the width) for labels at the right."""
    span = max(count - 1, 1)
    axis.set_xlim(1 - 0.02 * span, 1 + span * (1.02 + room))
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axis.set_xlabel(label)
    axis.set_xticks([tick for tick in axis.get_xticks() if 1 <= tick <= count])


def label_ends(axis: Axes, epoch: int, ends: Sequence[tuple[float, str, str]], apart: float = APART) -> None:
    """Write text beside the last points (height in percent, text, colour), pushed apart where it would overlap."""
    places = sorted(ends)
    heights = [places[0][0]]
    for place, _, _ in places[1:]:
        heights.append(max(place, heights[-1] + apart))
    over = max(0.0, heights[-1] - 100)
    for i in reversed(range(len(heights))):  # what stuck out at the top pushes downwards again
        limit = heights[-1] - over if i == len(heights) - 1 else heights[i + 1] - apart
        heights[i] = min(heights[i], limit)
    for height, (_, text, colour) in zip(heights, places, strict=True):
        axis.annotate(text, (epoch, height), (7, 0), textcoords="offset points", color=colour, va="center", fontsize=SMALL)
