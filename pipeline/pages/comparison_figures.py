"""The pictures of several runs side by side: how their victims did, and what the protection cost."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, PercentFormatter

from pipeline.pages.canvas import LIGHT, SMALL, Theme, drawing, percent, png
from pipeline.results.comparison import Comparison
from pipeline.results.run_results import RunResults
from pipeline.results.victims import Spread, VictimPair

LINE = 0.34  # inches for a run in a panel
LONGEST_NAME = 24  # letters in a line
LONGEST_LABEL = 62  # letters in a line below a picture
TICKS = (1, 2, 5)  # times a power of ten


def accuracies(comparison: Comparison, theme: Theme = LIGHT) -> bytes:
    """Draw a panel per victim and a line per run: accuracy trained on clean and on protected images, and the latter relabelled."""
    victims = comparison.drawn
    measured = {victim: {name: pair for name, run in comparison.runs.items() if (pair := _pair(run, victim))} for victim in victims}
    lines = [len(runs) for runs in measured.values()]
    height = 1.1 + sum(0.42 + LINE * count for count in lines)
    figure, axes = drawing(height, theme, len(victims), 1, sharex=True, height_ratios=[count + 0.4 for count in lines])
    for axis, (victim, runs) in zip(axes, measured.items(), strict=True):
        axis.grid(visible=False)
        axis.grid(visible=True, axis="x", color=theme.quiet, linewidth=0.6, alpha=0.6)
        axis.set_title(victim, loc="left", color=theme.ink, fontsize=10.5)
        for line, (name, pair) in enumerate(runs.items()):
            _line(axis, line, pair, comparison.runs[name].chance, theme)
        axis.set_yticks(range(len(runs)), [_wrapped(name) for name in runs], fontsize=SMALL)
        axis.set_ylim(len(runs) - 0.4, -0.6)
        axis.set_xlim(-1, 101)
        axis.xaxis.set_major_formatter(PercentFormatter(decimals=0, symbol=" %"))
    some = any(pair.clean.other for runs in measured.values() for pair in runs.values())
    axes[-1].set_xlabel("accuracy on clean test images" + (" of protected classes" if some else ""))
    marks = [_mark("o", theme.clean), _mark("o", theme.protected), _mark("D", theme.protected, hollow=True), _mark("|", theme.ink)]
    words = ["clean", "protected", "relabelled", "chance"]
    figure.legend(marks, words, loc="outside upper center", ncols=4, frameon=False, labelcolor=theme.ink, fontsize=SMALL, columnspacing=1.2)
    return png(figure)


def _pair(run: RunResults, victim: str) -> VictimPair | None:
    return next((pair for pair in run.pairs if pair.name == victim), None)


def _line(axis: Axes, line: int, pair: VictimPair, chance: float, theme: Theme) -> None:
    clean, protected, relabelled = pair.clean.last, pair.protected.last, pair.protected.relabelled
    axis.plot([protected.mean, clean.mean], [line, line], color=theme.quiet, linewidth=2, zorder=1)
    axis.plot([chance], [line], "|", color=theme.ink, markersize=13, zorder=2)
    for spread, colour in ((clean, theme.clean), (protected, theme.protected)):
        axis.errorbar([spread.mean], [line], xerr=_error(spread), fmt="o", color=colour, markersize=7, capsize=3, zorder=4)
    axis.plot([relabelled.mean], [line], "D", color=theme.protected, markersize=6, fillstyle="none", markeredgewidth=1.4, zorder=3)


def _error(spread: Spread) -> list[float] | None:
    return None if spread.deviation is None else [spread.deviation]


def _mark(marker: str, colour: str, *, hollow: bool = False) -> Line2D:
    return Line2D([], [], linestyle="", marker=marker, color=colour, fillstyle="none" if hollow else "full", markersize=7)


def _wrapped(name: str) -> str:
    return "\n".join(textwrap.wrap(name, LONGEST_NAME, max_lines=2, placeholder="…"))


def has_costs(comparison: Comparison) -> bool:
    """Return whether victims were measured on releases that took different numbers of gradients."""
    return len({run.gradients_per_image for run in _costly(comparison).values()}) > 1


def _has_release(run: RunResults) -> bool:
    """Return whether any victim had images of the release."""
    return any(len(pair.trained) > 1 for pair in run.pairs)


def _costly(comparison: Comparison) -> dict[str, RunResults]:
    """Return the runs that have a place on a scale of costs; a method that needs no gradient has none."""
    return {name: run for name, run in comparison.runs.items() if run.gradients_per_image and _has_release(run)}


def _free(comparison: Comparison) -> list[str]:
    """Name the methods of measured releases that needed no gradient."""
    runs = (run for run in comparison.runs.values() if _has_release(run) and not run.gradients_per_image)
    return list(dict.fromkeys(str(run.count("protect", "method")) for run in runs))


def _of_release(run: RunResults, victim: str) -> VictimPair | None:
    """Return the victim of that name, unless it had no image of the release."""
    pair = _pair(run, victim)
    return pair if pair and len(pair.trained) > 1 else None


def cost(comparison: Comparison, theme: Theme = LIGHT) -> bytes:
    """Draw protected accuracy against gradients per image, a panel per victim; points of a sweep are joined along one numeric field."""
    runs = _costly(comparison)
    victims = [victim for victim in comparison.drawn if any(_of_release(run, victim) for run in runs.values())]
    along, groups = _curves(runs)
    below = ["gradients per image" + (f" (numbers in the picture: {_words(along)})" if along else "")]
    if free := _free(comparison):
        below += textwrap.wrap(f"without gradients, and so not on this scale: {', '.join(free)}", LONGEST_LABEL, break_on_hyphens=False)
    figure, axes = drawing(0.7 + 0.2 * len(below) + 3.3 * len(victims), theme, len(victims), 1, sharex=True)
    for axis, victim in zip(axes, victims, strict=True):
        for number, (label, names) in enumerate(groups.items()):
            own = {name: pair for name in names if (pair := _pair(runs[name], victim))}
            _curve(axis, own, runs, along, label, theme.several[number % len(theme.several)])
        pairs = [pair for run in runs.values() if (pair := _pair(run, victim))]
        _level(axis, [pair.clean.last.mean for pair in pairs], "clean", theme.clean, theme)
        _level(axis, [run.chance for run in runs.values()], "chance", theme.ink, theme)
        axis.set_title(victim, loc="left", color=theme.ink, fontsize=10.5)
        percent(axis)
        axis.set_ylabel("accuracy, trained on\nprotected images")
    _logarithmic(axes[-1], [run.gradients_per_image for run in runs.values()])
    axes[-1].set_xlabel("\n".join(below))
    if along and len(groups) > 1:
        columns = min(len(groups), 2 if max(map(len, groups)) > 16 else 4)
        figure.legend(
            loc="outside upper center", ncols=columns, frameon=False, labelcolor=theme.ink, fontsize=SMALL, handles=_keys(axes[0])
        )
    return png(figure)


def _curves(runs: dict[str, RunResults]) -> tuple[str, dict[str, list[str]]]:
    """Return the swept field with most values, and the runs in its order by the values of the other fields.

    The field is empty unless all runs are points of one sweep.
    """
    swept = [run.swept for run in runs.values()]
    if not all(swept) or len({tuple(settings) for settings in swept}) > 1:
        return "", {name: [name] for name in runs}
    fields = list(swept[0])
    along = max(fields, key=lambda field: len({str(settings[field]) for settings in swept}))
    groups: dict[str, list[str]] = {}
    for name in sorted(runs, key=lambda name: runs[name].gradients_per_image):
        label = ", ".join(f"{_words(field)} {_text(runs[name].swept[field])}" for field in fields if field != along)
        groups.setdefault(label, []).append(name)
    return along, dict(sorted(groups.items(), key=lambda group: runs[group[1][0]].gradients_per_image))


def _curve(axis: Axes, own: dict[str, VictimPair], runs: dict[str, RunResults], along: str, label: str, colour: str) -> None:
    places = [runs[name].gradients_per_image for name in own]
    spreads = [pair.protected.last for pair in own.values()]
    errors = [spread.deviation or 0.0 for spread in spreads]
    heights = [spread.mean for spread in spreads]
    joined = bool(along) and not any(isinstance(runs[name].swept[along], str) for name in own)  # nothing is between two methods
    fmt = "o-" if joined else "o"
    axis.errorbar(places, heights, errors if any(errors) else None, fmt=fmt, color=colour, linewidth=1.8, capsize=3, label=label)
    for name, place, height in zip(own, places, heights, strict=True):
        text = _text(runs[name].swept[along]) if along else _wrapped(name)
        axis.annotate(text, (place, height), (0, 7), textcoords="offset points", ha="center", color=colour, fontsize=SMALL)


def _level(axis: Axes, values: Sequence[float], label: str, colour: str, theme: Theme) -> None:
    """Draw a dotted line at the mean of values that differ by little."""
    if max(values) - min(values) > 10:
        return
    mean = math.fsum(values) / len(values)
    axis.axhline(mean, color=colour, linewidth=1, linestyle=(0, (2, 3)))
    axis.annotate(f"{label} {mean:.3g} %", (1, mean), (-2, 3), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right")
    axis.texts[-1].set(color=colour, fontsize=SMALL)


def _logarithmic(axis: Axes, values: Sequence[float]) -> None:
    """Make an axis logarithmic, with few plain numbers on it and room at both ends."""
    axis.set_xscale("log")
    low, high = min(values) / 1.5, max(values) * 1.5
    axis.set_xlim(low, high)
    ticks = [step * 10**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for step in TICKS]
    axis.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())


def _keys(axis: Axes) -> list[Any]:
    handles, _ = axis.get_legend_handles_labels()
    return list(handles)


def _words(field: str) -> str:
    return field.rpartition(".")[2].replace("_", " ")


def _text(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)
