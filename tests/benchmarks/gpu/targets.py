"""What the proof is to show: nothing fails where a target is missed, the card says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

Cards = Mapping[str, Mapping[str, Any]]


class Target(NamedTuple):
    """A figure of one piece, and its bound."""

    name: str
    piece: str
    bound: float
    most: bool  # whether the bound is the most, or the least
    path: tuple[Any, ...]  # to the figure in the piece's results


def _victim(release: str | None) -> tuple[Any, ...]:
    return ("victims", {"release": release, "countermeasure": "none"}, "last_accuracy", "mean")


TARGETS = (
    Target("seconds of the surrogate", "craft-2", 180, True, ("surrogate", 0, "seconds")),
    *(
        target
        for levels, accuracy in ((2, 14.7), (8, 3.9))
        for piece, label, victims in [("craft-2" if levels == 2 else "paper-8", f"{levels}/255", f"paper-{levels}")]
        for target in (
            Target(f"seconds of the protection at {label}, class means included", piece, 480, True, ("seconds", f"protect {label}")),
            Target(f"gradients/s at {label}", piece, 75_000, False, ("protection", label, "gradients_per_second")),
            Target(f"accuracy of the victim at {label}, %", victims, accuracy, True, _victim(label)),
        )
    ),
    Target("accuracy of the clean victim, %", "paper-2", 94, False, _victim(None)),
)


def compared(found: Cards) -> list[dict[str, Any]]:
    """Return every target with its figure; None where it is not measured yet.

    Args:
        found: the results of the pieces, by name.
    """
    rows = []
    for target in TARGETS:
        value = _figure(found.get(target.piece), target.path)
        met = None if value is None else bool(value <= target.bound if target.most else value >= target.bound)
        bound = {"at_most" if target.most else "at_least": target.bound}
        rows.append({"target": target.name, **bound, "measured": value, "met": met})
    return rows


def _figure(value: Any, path: tuple[Any, ...]) -> float | None:
    """Return what lies at a path of keys, positions and, in a list of mappings, of the entries to look for."""
    for step in path:
        if not value:
            return None
        if isinstance(step, dict):
            value = next((entry for entry in value if step.items() <= entry.items()), None)
        else:
            value = value[step] if isinstance(step, int) else value.get(step)
    return None if value is None else float(value)


def shown(rows: list[dict[str, Any]]) -> list[str]:
    """Return a line for each target."""
    words = {None: "not measured yet", True: "met", False: "missed"}
    lines = []
    for row in rows:
        bound = f"at most {row['at_most']:,}" if "at_most" in row else f"at least {row['at_least']:,}"
        measured = "" if row["measured"] is None else f", is {row['measured']:,.1f}"
        lines.append(f"{row['target']}: {bound}{measured}: {words[row['met']]}")
    return lines
