"""The pictures of a run, each a PNG: data in, bytes out, in colours for a light or a dark page."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pipeline.results import Pair, Similarity
from pipeline.shards import Pixels

DPI = 160
READABLE = 192  # pixels a side; smaller images are enlarged to at least this
WIDTH = 6.4  # inches; narrow enough that labels stay readable on a phone
APART = 7.0  # percent between two labels at the end of curves
FEW = 10  # rows of a matrix whose cells have room for a number
EPOCHS = "epoch, counted from 1 (--protect.epochs counts from 0)"


@dataclass(frozen=True)
class Theme:
    """The colours of one kind of page."""

    paper: str
    ink: str
    quiet: str
    clean: str
    protected: str
    several: tuple[str, ...]  # one per network; told apart by the colour-blind too (after Okabe and Ito)


LIGHT = Theme(
    paper="#ffffff",
    ink="#1c2430",
    quiet="#c9d0da",
    clean="#2563eb",
    protected="#d9480f",
    several=("#0072b2", "#c25400", "#00805c", "#a8437f", "#9a7400", "#2b8fc4", "#6b4fa0", "#555f6d"),
)
DARK = Theme(
    paper="#171b22",
    ink="#e6e9ef",
    quiet="#444c59",
    clean="#74a9ff",
    protected="#ff9a5c",
    several=("#56a9e8", "#f0803c", "#2fc49a", "#e08fbf", "#e6c74c", "#8fd3f5", "#b39ae6", "#b8c0cc"),
)


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


def _epochs(axis: Axes, count: int, room: float = 0.0, label: str = "epoch") -> None:
    """Whole epochs from 1 on the horizontal axis, with `room` (a share of the width) for labels at the right."""
    span = max(count - 1, 1)
    axis.set_xlim(1 - 0.02 * span, 1 + span * (1.02 + room))
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axis.set_xlabel(label)
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
    of_whom = "\nof protected classes" if pairs[0].clean.other else ""
    figure.supylabel(f"accuracy on clean test images{of_whom}", fontsize=10.5, color=theme.ink)
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


def surrogate(networks: Mapping[str, Sequence[dict[str, Any]]], chosen: Sequence[int], theme: Theme = LIGHT) -> bytes:
    """Loss and training accuracy per epoch, a curve per network; dots mark the checkpoints the protection was made with.

    Args:
        networks: epochs of each network, as in `surrogate/checkpoints.json`.
        chosen: 0-based epochs of the ensemble; empty where nothing was protected yet.
        theme: the colours.
    """
    one = len(networks) == 1
    figure, (upper, lower) = _figure(4.4 if one else 5.6, theme, 2, 1, sharex=True, height_ratios=(1, 1 if one else 1.5))
    colours = dict(zip(networks, (theme.clean,) if one else theme.several, strict=False))
    for axis, name, title in ((upper, "loss", "training loss"), (lower, "accuracy", "accuracy on augmented training images")):
        for network, entries in networks.items():
            values = [entry["metrics"][name] for entry in entries]
            axis.plot([entry["epoch"] + 1 for entry in entries], values, color=colours[network], linewidth=2)
            marked = [(entry["epoch"] + 1, entry["metrics"][name]) for entry in entries if entry["epoch"] in chosen]
            if marked:
                colour = theme.protected if one else colours[network]
                axis.plot(*zip(*marked, strict=True), "o", color=colour, markersize=5, clip_on=False)
        axis.set_title(title, loc="left", color=theme.ink, fontsize=10.5)
    upper.set_ylim(bottom=0)
    _percent(lower)
    count = max(len(entries) for entries in networks.values())
    _epochs(lower, count, 0.0 if one else 0.3, EPOCHS)
    if not one:
        ends = [(entries[-1]["metrics"]["accuracy"], name, colours[name]) for name, entries in networks.items()]
        _label_ends(lower, count, ends)
    if chosen:
        dot = Line2D([], [], marker="o", linestyle="", markersize=5, color=theme.protected if one else theme.ink)
        upper.legend([dot], ["checkpoints of the ensemble"], frameon=False, labelcolor=theme.ink, fontsize=9.5)
    return _png(figure)


def similarity(matrices: Sequence[Similarity], theme: Theme = LIGHT) -> bytes:
    """Cosines between gradients, a panel per matrix, all in the same colours; what is orthogonal has that of the paper."""
    columns = min(len(matrices), 2)
    rows = -(-len(matrices) // columns)
    figure, axes = _figure(5.2 if columns == 1 else 0.8 + 3.1 * rows, theme, rows, columns)
    colours = LinearSegmentedColormap.from_list("cosine", [theme.protected, theme.paper, theme.clean])
    for axis, matrix in zip(axes, matrices, strict=False):
        count = len(matrix.labels)
        image = axis.imshow(matrix.cosines, cmap=colours, vmin=-1, vmax=1, interpolation="none")
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
        title = f"{matrix.network or 'between networks'}: mean {_hundredths(matrix.mean)}"
        axis.set_title(title, loc="left", color=theme.ink, fontsize=10.5)
        shown = range(0, count, -(-count // FEW))
        axis.set_xticks(shown, [matrix.labels[i] for i in shown], rotation=0 if matrix.network else 90, fontsize=9)
        axis.set_yticks(shown, [matrix.labels[i] for i in shown], fontsize=9)
        for i, j in product(range(count), repeat=2) if count <= FEW else ():
            ink = theme.paper if abs(matrix.cosines[i][j]) > 0.6 else theme.ink
            text = "1" if i == j else _hundredths(matrix.cosines[i][j]).replace("0.", ".", 1)
            axis.text(j, i, text, ha="center", va="center", color=ink, fontsize=min(10.0, 86 * (3 - columns) / count))
    for axis in axes[len(matrices) :]:
        axis.remove()
    bar = figure.colorbar(image, ax=axes[: len(matrices)], location="bottom", fraction=0.05, aspect=40, pad=0.02)
    bar.set_ticks([-1, -0.5, 0, 0.5, 1])
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=theme.ink, length=0, labelsize=9)
    bar.set_label("cosine similarity of gradients (0: orthogonal)", color=theme.ink)
    figure.supylabel(EPOCHS, fontsize=9.5, color=theme.ink)
    return _png(figure)


def _hundredths(value: float) -> str:
    """Two decimals, and never a negative zero."""
    return f"{round(value, 2) + 0.0:.2f}"


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
    side = (WIDTH - 0.35) / max(columns, 3)
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
