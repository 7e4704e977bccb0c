"""The card of a run as a small table for a terminal."""

from __future__ import annotations

from typing import Any

from pipeline.results.card import ACCURACIES, Card


def table(card: Card) -> str:
    """Return accuracies, rates, times and what is missing."""
    published = card.get("published", {})
    lines = [["test accuracy in %", "last epoch", "peak", "relabelled", "seeds", *(["published"] if published else [])]]
    for victim in card["victims"]:
        lines.append([_name(victim), *(_shown(victim[f"{kind}_accuracy"]) for kind in ACCURACIES), str(len(victim["seeds"]))])
        if published:
            lines[-1].append(str(published.get(victim["release"] or "clean", "-") if victim["countermeasure"] == "none" else "-"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    rates = [
        f"{label}: largest change {of['linf_levels']}, PSNR {of['psnr_db']:.1f} dB"
        + (f", {of['gradients_per_second']:,.0f} gradients/s" if of["gradients_per_second"] else "")
        for label, of in card["protection"].items()
    ]
    seconds = ", ".join(f"{stage} {value:,.0f}" for stage, value in card["seconds"].items())
    data = [f"published: for {card['published_for']}; here: {card['data']['source']}"] if published else []
    missing = [f"missing: {what}" for what in card["missing"]]
    return "\n".join([*(rows if card["victims"] else ["no victim is trained yet"]), *data, *rates, f"seconds: {seconds}", *missing])


def _name(victim: dict[str, Any]) -> str:
    """Return `resnet18, protected, 2/255, jpeg-10`."""
    names = (victim["network"], victim["data"], victim["release"], victim["countermeasure"])
    return ", ".join(name for name in names if name not in (None, "none"))


def _shown(figure: dict[str, float | None]) -> str:
    """Return `10.3 ± 0.4`."""
    return f"{figure['mean']:.1f}" + ("" if figure["std"] is None else f" ± {figure['std']:.1f}")
