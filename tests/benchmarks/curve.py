"""The curve of gradients against protection, as a picture for README.md and docs/performance.md, from the cards of `gradients`.

python -m tests.benchmarks.curve
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from pipeline.pages.canvas import LIGHT, SMALL, drawing, percent, png
from tests.benchmarks.tables import Card, cards, gradients_per_image, pairs

PICTURE = Path(__file__).parent / "pictures" / "gradients.png"
APART = 1.07  # from one card to the next, as a factor
SERIES = {"accuracy": ("last_accuracy", "o"), "relabelled": ("relabelled_accuracy", "D")}


def places(found: list[Card]) -> list[float]:
    """Return where each card stands along the axis: those of as many gradients beside each other, which would hide each other."""
    taken = [gradients_per_image(card) for card in found]
    earlier = [taken[:i].count(count) for i, count in enumerate(taken)]
    return [count * APART ** (number - (taken.count(count) - 1) / 2) for count, number in zip(taken, earlier, strict=True)]


def draw(found: list[Card]) -> Figure:
    """Draw accuracies of victims without countermeasure, with their deviations, against the gradients that an image takes.

    Args:
        found: the cards, each of one recipe.
    """
    figure, (axis,) = drawing(3.6, LIGHT)
    methods = list(dict.fromkeys(card["method"] for card in found))
    for card, place in zip(found, places(found), strict=True):
        clean, ours = next((clean, ours) for clean, ours in pairs(card) if clean["countermeasure"] == "none")
        colour = LIGHT.several[methods.index(card["method"])]
        for name, marker in SERIES.values():
            figures = ours[name]
            axis.errorbar(
                [place],
                [figures["mean"]],
                [figures["std"] or 0.0],
                fmt=marker,
                color=colour,
                fillstyle="full" if marker == "o" else "none",
                capsize=3,
                label=card["method"] if marker == "o" else None,
            )
    axis.axhline(clean["last_accuracy"]["mean"], color=LIGHT.clean, linewidth=1, linestyle=(0, (2, 3)))
    axis.annotate(
        "clean", (1, clean["last_accuracy"]["mean"]), (-2, 3), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right"
    )
    axis.set_xscale("log")
    axis.minorticks_off()
    taken = sorted({gradients_per_image(card) for card in found})
    axis.set_xticks(taken, [f"{count:,}" for count in taken])
    percent(axis)
    axis.set_xlabel("gradients an image (hollow: relabelled)")
    axis.set_ylabel("accuracy, trained on\nprotected images")
    handles = {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=3, frameon=False, fontsize=SMALL)
    return figure


if __name__ == "__main__":
    PICTURE.write_bytes(png(draw(cards("gradients"))))
