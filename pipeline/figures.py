"""The pictures of a run, each a PNG: data in, bytes out, in colours for a light or a dark page."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pipeline.results import Pair
from pipeline.shards import Pixels

DPI = 160
READABLE = 192  # pixels a side; smaller images are enlarged to at least this
WIDTH = 6.4  # inches; narrow enough that labels stay readable on a phone
APART = 7.0  # percent between two labels at the end of curves


@dataclass(frozen=True)
class Theme:
    """The colours of one kind of page."""

    paper: str
    ink: str
    quiet: str
    clean: str
    protected: str


LIGHT = Theme(paper="#ffffff", ink="#1c2430", quiet="#c9d0da", clean="#2563eb", protected="#d9480f")
DARK = Theme(paper="#171b22", ink="#e6e9ef", quiet="#444c59", clean="#74a9ff", protected="#ff9a5c")


@dataclass(frozen=True)
class Triplet:
    """One image before and after, `(H, W, 3)` levels each, with the name of its class."""

    class_name: str
    clean: Pixels
    protected: Pixels


def _figure(height: float, theme: Theme, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure without any global state, and its axes row by row."""
    with mpl.rc_context({"font.size": 10.5, "axes.labelcolor": theme.ink, "text.color": theme.ink}):
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


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _percent(axis: Axes) -> None:
    axis.set_ylim(0, 102)
    axis.set_yticks(range(0, 101, 20))
    axis.yaxis.set_major_formatter(PercentFormatter(decimals=0, symbol=" %"))


def _epochs(axis: Axes, count: int, room: float = 0.0) -> None:
    """Whole epochs from 1 on the horizontal axis, with `room` (a share of the width) for labels at the right."""
    span = max(count - 1, 1)
    axis.set_xlim(1 - 0.02 * span, 1 + span * (1.02 + room))
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axis.set_xlabel("epoch")
    axis.set_xticks([tick for tick in axis.get_xticks() if 1 <= tick <= count])


def accuracy(pairs: Sequence[Pair], chance: float, theme: Theme = LIGHT) -> bytes:
    """Test accuracy per epoch, clean against protected: a panel per victim, the mean bold and every seed thin."""
    columns = min(len(pairs), 2)
    rows = -(-len(pairs) // columns)
    figure, axes = _figure(3.7 if columns == 1 else 0.4 + 2.7 * rows, theme, rows, columns, sharey=True)
    for axis, pair in zip(axes, pairs, strict=False):
        ends: list[tuple[float, str, str]] = [(chance, f"chance {chance:.3g} %", theme.ink)]
        for cell, colour in ((pair.clean, theme.clean), (pair.protected, theme.protected)):
            curves = np.array(cell.curves)
            epochs = np.arange(1, curves.shape[1] + 1)
            mean = curves.mean(0)
            if len(curves) > 1:
                axis.plot(epochs, curves.T, color=colour, linewidth=0.8, alpha=0.4)
            axis.plot(epochs, mean, color=colour, linewidth=2.4, marker="o" if len(epochs) < 3 else None)
            ends.append((float(mean[-1]), f"{cell.data} {mean[-1]:.1f} %", colour))
        axis.plot([1, len(epochs)], [chance, chance], color=theme.ink, linewidth=1, linestyle=(0, (2, 3)), alpha=0.7)
        axis.set_title(pair.name, loc="left", color=theme.ink, fontsize=10.5)
        _percent(axis)
        _epochs(axis, len(epochs), room=0.36 if columns == 1 else 0.62)
        _label_ends(axis, len(epochs), ends)
    for axis in axes[len(pairs) :]:
        axis.remove()
    figure.supylabel("accuracy on clean test images", fontsize=10.5, color=theme.ink)
    return _png(figure)


def _label_ends(axis: Axes, epoch: int, ends: list[tuple[float, str, str]]) -> None:
    """Text beside the last points, pushed apart where it would overlap."""
    places = sorted(ends)
    heights = [places[0][0]]
    for place, _, _ in places[1:]:
        heights.append(max(place, heights[-1] + APART))
    over = max(0.0, heights[-1] - 100)
    for i in reversed(range(len(heights))):  # what stuck out at the top pushes downwards again
        limit = heights[-1] - over if i == len(heights) - 1 else heights[i + 1] - APART
        heights[i] = min(heights[i], limit)
    for height, (_, text, colour) in zip(heights, places, strict=True):
        axis.annotate(text, (epoch, height), (7, 0), textcoords="offset points", color=colour, va="center", fontsize=9.5)


def surrogate(checkpoints: Sequence[dict[str, Any]], chosen: Sequence[int], theme: Theme = LIGHT) -> bytes:
    """Loss and training accuracy per epoch; dots mark the checkpoints the protection was made with.

    Args:
        checkpoints: as in `surrogate/checkpoints.json`.
        chosen: 0-based epochs of the ensemble; empty where nothing was protected yet.
        theme: the colours.
    """
    figure, (upper, lower) = _figure(4.4, theme, 2, 1, sharex=True)
    epochs = [entry["epoch"] + 1 for entry in checkpoints]
    for axis, name, title in ((upper, "loss", "training loss"), (lower, "accuracy", "accuracy on augmented training images")):
        values = [entry["metrics"][name] for entry in checkpoints]
        axis.plot(epochs, values, color=theme.clean, linewidth=2)
        marked = [(entry["epoch"] + 1, entry["metrics"][name]) for entry in checkpoints if entry["epoch"] in chosen]
        if marked:
            axis.plot(*zip(*marked, strict=True), "o", color=theme.protected, markersize=5, label="checkpoints of the ensemble")
        axis.set_title(title, loc="left", color=theme.ink, fontsize=10.5)
    upper.set_ylim(bottom=0)
    _percent(lower)
    _epochs(lower, len(epochs))
    if chosen:
        upper.legend(frameon=False, labelcolor=theme.ink, fontsize=9.5)
    return _png(figure)


def psnr(values: Sequence[float], theme: Theme = LIGHT) -> bytes:
    """How similar the protected images are to the clean ones: the distribution of PSNR in dB, and its mean."""
    figure, (axis,) = _figure(2.7, theme)
    mean, spread = float(np.mean(values)), float(np.ptp(values))
    bins = min(40, max(8, len(values) // 10)) if spread > 0 else 1
    edges = np.histogram_bin_edges(values, bins) if spread > 0 else np.array([mean - 0.05, mean + 0.05])
    axis.hist(values, edges.tolist(), color=theme.protected, alpha=0.85, rwidth=0.94)
    axis.axvline(mean, color=theme.ink, linewidth=1.2, linestyle=(0, (2, 3)))
    axis.set_ylim(top=axis.get_ylim()[1] * 1.14)
    place = (mean, axis.get_ylim()[1] * 0.98)
    axis.annotate(f"mean {mean:.1f} dB", place, (6, 0), textcoords="offset points", va="top", color=theme.ink)
    axis.yaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    axis.set_xlabel("PSNR of a protected image, dB (higher is closer to the original)")
    axis.set_ylabel("images")
    return _png(figure)


def amplification(eps_levels: int) -> int:
    """By how much differences are multiplied so that the whole budget spans black to white."""
    return max(1, 127 // eps_levels)


def samples(triplets: Sequence[Triplet], eps_levels: int, theme: Theme = LIGHT) -> bytes:
    """Columns of clean image, protected image and amplified difference (grey is no change), enlarged pixel by pixel."""
    factor = amplification(eps_levels)
    columns = len(triplets)
    height, width, _ = triplets[0].clean.shape
    side = (WIDTH - 0.35) / columns
    figure, axes = _figure(3 * (side * height / width + 0.05) + 0.45, theme, 3, columns)
    for column, triplet in enumerate(triplets):
        change = triplet.protected.astype(np.int16) - triplet.clean
        difference = (128 + factor * change).clip(0, 255).astype(np.uint8)
        labels = ("clean", "protected", f"difference × {factor}")
        for row, (pixels, label) in enumerate(zip((triplet.clean, triplet.protected, difference), labels, strict=True)):
            axis = axes[row * columns + column]
            axis.imshow(_enlarged(pixels), interpolation="none")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if row == 0:
                axis.set_title(_wrapped(triplet.class_name), color=theme.ink, fontsize=9.5)
            if column == 0:
                axis.set_ylabel(label, fontsize=9.5)
    return _png(figure)


def _enlarged(pixels: Pixels) -> Pixels:
    """Each pixel as a square of so many that the image is readable: no blur that would hide the perturbation."""
    times = max(1, -(-READABLE // pixels.shape[0]))
    return pixels.repeat(times, 0).repeat(times, 1)


def _wrapped(name: str) -> str:
    """A class name in at most two short lines."""
    return "\n".join(textwrap.wrap(name.replace("_", " "), 14, max_lines=2, placeholder="…"))
