"""The pictures of training, each a PNG: data in, bytes out, in colours for a light or a dark page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.lines import Line2D

from pipeline.pages.canvas import DARK, FONT, LIGHT, SMALL, Theme, bare, drawing, epochs, ink_on, label_ends, percent, png, shades
from pipeline.results.similarity import Similarity
from pipeline.results.victims import VictimPair

FEW = 10  # rows of a similarity matrix whose cells have room for a number
PANELS_ACROSS = 3
WIDE_CELLS = 10  # columns of an accuracy matrix whose cells have room for a decimal
EPOCHS = "epoch, counted from 1 (--protect.epochs counts from 0)"
ON_TEST_IMAGES = "accuracy on clean test images"

__all__ = ["DARK", "LIGHT", "Theme", "accuracy", "matrix", "similarity", "surrogate"]


def accuracy(pairs: Sequence[VictimPair], chance: float, theme: Theme = LIGHT) -> bytes:
    """Draw test accuracy per epoch, clean against protected, a panel per victim: the mean over seeds, in a band from least to most."""
    alone, columns = len(pairs) == 1, min(len(pairs), 2 if len(pairs) <= 4 else PANELS_ACROSS)
    rows = -(-len(pairs) // columns)
    figure, axes = drawing(3.4 if alone else 0.9 + (5.6 / columns) * 0.8 * rows, theme, rows, columns, sharex=not alone, sharey=True)
    one_network = len({pair.clean.network for pair in pairs}) == 1
    for axis, pair in zip(axes, pairs, strict=False):
        ends = _curves(axis, pair, theme)
        count = len(pair.clean.curves[0])
        axis.plot([1, count], [chance, chance], color=theme.ink, linewidth=1, linestyle=(0, (2, 3)), alpha=0.7)
        title = pair.clean.countermeasure if one_network and not alone else pair.name
        axis.set_title(title, loc="left", color=theme.ink, fontsize=FONT if columns < PANELS_ACROSS else SMALL)
        percent(axis, 20 if alone else 25)
        if alone:
            ends = [(height, f"{data} {height:.1f} %", colour) for height, data, colour in ends]
            ends.append((chance, f"chance {chance:.3g} %", theme.ink))
        else:
            ends = [(height, f"{height:.0f}", colour) for height, _, colour in ends]
        label_ends(axis, count, ends, 7 if alone else 4.5 * columns)
    longest = max(len(pair.clean.curves[0]) for pair in pairs)  # panels share their epochs, and some countermeasures train for fewer
    for axis in axes[: len(pairs)]:
        epochs(axis, longest, room=0.4 if alone else 0.12 * columns, label="epoch" if alone else "")
    for axis in axes[len(pairs) :]:
        axis.remove()
    if not alone:
        dashed = Line2D([], [], color=theme.ink, linewidth=1, linestyle=(0, (2, 3)), alpha=0.7)
        lines = [Line2D([], [], color=colour, linewidth=2.4) for colour in (theme.clean, theme.protected)]
        words = ["on clean images", "on protected images", f"chance {chance:.3g} %"]
        of = {"ncols": 3, "frameon": False, "fontsize": SMALL, "labelcolor": theme.ink, "handlelength": 1.4, "columnspacing": 1.2}
        figure.legend([*lines, dashed], words, loc="outside upper left", **of)
        figure.supxlabel("epoch", fontsize=FONT, color=theme.ink)
    of_classes = "\nof protected classes" if pairs[0].clean.other else ""
    figure.supylabel(ON_TEST_IMAGES + of_classes, fontsize=FONT, color=theme.ink)
    return png(figure)


def _curves(axis: Axes, pair: VictimPair, theme: Theme) -> list[tuple[float, str, str]]:
    """Draw the two curves of one victim; return the end of each, its name and its colour."""
    ends = []
    for stats, colour in ((pair.clean, theme.clean), (pair.protected, theme.protected)):
        curves = np.array(stats.curves)
        steps, mean = np.arange(1, curves.shape[1] + 1), curves.mean(0)
        if len(curves) > 1:
            axis.fill_between(steps, curves.min(0), curves.max(0), color=colour, alpha=0.22, linewidth=0)
        axis.plot(steps, mean, color=colour, linewidth=2, marker="o" if len(steps) < 3 else None)
        ends.append((float(mean[-1]), stats.data, colour))
    return ends


def matrix(pairs: Sequence[VictimPair], theme: Theme = LIGHT) -> bytes:
    """Draw accuracy after the last epoch, mean over seeds: a row per countermeasure, clean beside protected for each network.

    The darker a cell, the more was learned.
    """
    networks = list(dict.fromkeys(pair.clean.network for pair in pairs))
    names = list(dict.fromkeys(pair.clean.countermeasure for pair in pairs))
    values = np.full((len(names), 2 * len(networks)), np.nan)
    for pair in pairs:
        row, column = names.index(pair.clean.countermeasure), 2 * networks.index(pair.clean.network)
        values[row, column : column + 2] = pair.clean.last.mean, pair.protected.last.mean
    figure, (axis,) = drawing(1.5 + 0.3 * len(names), theme)
    bare(axis)
    colours = shades(theme)
    axis.imshow(values, cmap=colours, vmin=0, vmax=100, aspect="auto", interpolation="none")
    wide = values.shape[1] <= WIDE_CELLS
    for row, column in product(*map(range, values.shape)):
        value = values[row, column]
        text = "–" if np.isnan(value) else f"{value:.1f}" if wide else f"{value:.0f}"
        colour = theme.ink if np.isnan(value) else ink_on(colours(value / 100))
        axis.text(column, row, text, ha="center", va="center", fontsize=9, fontweight="bold" if column % 2 else "normal", color=colour)
    for column in range(2, values.shape[1], 2):
        axis.axvline(column - 0.5, color=theme.paper, linewidth=5)
    axis.set_yticks(range(len(names)), names, fontsize=SMALL)
    kinds = ["clean", "protected"] * len(networks)
    axis.set_xticks(range(len(kinds)), kinds, fontsize=SMALL, rotation=0 if len(networks) < 3 else 90)
    axis.xaxis.set_tick_params(bottom=False, labelbottom=True)
    above = axis.secondary_xaxis("top")
    above.set_xticks([2 * i + 0.5 for i in range(len(networks))], networks, fontsize=SMALL, rotation=0 if len(networks) < 5 else 30)
    above.tick_params(colors=theme.ink, length=0)
    above.spines[:].set_visible(False)
    figure.supxlabel(f"{ON_TEST_IMAGES}, percent (darker: more was learned)", fontsize=SMALL, color=theme.ink)
    return png(figure)


def surrogate(networks: Mapping[str, Sequence[dict[str, Any]]], chosen: Sequence[int], theme: Theme = LIGHT) -> bytes:
    """Draw loss and training accuracy per epoch, a curve per network; dots mark the checkpoints that made the protection.

    Args:
        networks: epochs of each network, as in `surrogate/checkpoints.json`.
        chosen: 0-based epochs of the ensemble; empty before protection.
        theme: the colours.
    """
    one = len(networks) == 1
    figure, (upper, lower) = drawing(4.4 if one else 5.6, theme, 2, 1, sharex=True, height_ratios=(1, 1 if one else 1.5))
    colours = dict(zip(networks, (theme.clean,) if one else theme.several, strict=False))
    for axis, name, title in ((upper, "loss", "training loss"), (lower, "accuracy", "accuracy on augmented training images")):
        for network, entries in networks.items():
            values = [entry["metrics"][name] for entry in entries]
            axis.plot([entry["epoch"] + 1 for entry in entries], values, color=colours[network], linewidth=2)
            marked = [(entry["epoch"] + 1, entry["metrics"][name]) for entry in entries if entry["epoch"] in chosen]
            if marked:
                colour = theme.protected if one else colours[network]
                axis.plot(*zip(*marked, strict=True), "o", color=colour, markersize=5, clip_on=False)
        axis.set_title(title, loc="left", color=theme.ink, fontsize=FONT)
    upper.set_ylim(bottom=0)
    percent(lower)
    count = max(len(entries) for entries in networks.values())
    epochs(lower, count, 0.0 if one else 0.3, EPOCHS)
    if not one:
        ends = [(entries[-1]["metrics"]["accuracy"], name, colours[name]) for name, entries in networks.items()]
        label_ends(lower, count, ends)
    if chosen:
        dot = Line2D([], [], marker="o", linestyle="", markersize=5, color=theme.protected if one else theme.ink)
        upper.legend([dot], ["checkpoints of the ensemble"], frameon=False, labelcolor=theme.ink, fontsize=SMALL)
    return png(figure)


def similarity(matrices: Sequence[Similarity], theme: Theme = LIGHT) -> bytes:
    """Draw cosines between gradients, a panel per matrix, all in the same colours; orthogonal ones have the colour of the paper."""
    columns = min(len(matrices), 2)
    rows = -(-len(matrices) // columns)
    figure, axes = drawing(5.2 if columns == 1 else 0.8 + 2.8 * rows, theme, rows, columns)
    colours = LinearSegmentedColormap.from_list("cosine", [theme.protected, theme.paper, theme.clean])
    for axis, found in zip(axes, matrices, strict=False):
        count = len(found.labels)
        image = axis.imshow(found.cosines, cmap=colours, vmin=-1, vmax=1, interpolation="none")
        bare(axis)
        title = f"{found.network or 'between networks'}: mean {_hundredths(found.mean)}"
        axis.set_title(title, loc="left", color=theme.ink, fontsize=FONT)
        shown = range(0, count, -(-count // FEW))
        axis.set_xticks(shown, [found.labels[i] for i in shown], rotation=0 if found.network else 90, fontsize=9)
        axis.set_yticks(shown, [found.labels[i] for i in shown], fontsize=9)
        for i, j in product(range(count), repeat=2) if count <= FEW else ():
            ink = ink_on(colours((found.cosines[i][j] + 1) / 2))
            text = "1" if i == j else _hundredths(found.cosines[i][j]).replace("0.", ".", 1)
            axis.text(j, i, text, ha="center", va="center", color=ink, fontsize=min(10.0, 76 * (3 - columns) / count))
    for axis in axes[len(matrices) :]:
        axis.remove()
    bar = figure.colorbar(image, ax=axes[: len(matrices)], location="bottom", fraction=0.05, aspect=40, pad=0.02)
    bar.set_ticks([-1, -0.5, 0, 0.5, 1])
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=theme.ink, length=0, labelsize=9)
    bar.set_label("cosine similarity of gradients (0: orthogonal)", color=theme.ink)
    figure.supylabel(EPOCHS, fontsize=SMALL, color=theme.ink)
    return png(figure)


def _hundredths(value: float) -> str:
    """Return two decimals, and never a negative zero."""
    return f"{round(value, 2) + 0.0:.2f}"
