"""What a run of the protocol on one device has measured: a JSON card, and a table for people. Any part of it may be there.

Legend: B images, H W pixels.
"""

from __future__ import annotations

import dataclasses
import shlex
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.reproduction.pieces import load, load_json
from pipeline.reproduction.protocol import Run, Settings
from pipeline.reproduction.stages import chunks, means_file, victims
from sep.budget import check, linf_levels, psnr_db
from sep.methods.registry import METHODS
from sep.train_config import TrainConfig

# Last-epoch accuracy of a ResNet18 in percent, by budget in levels, None for clean images. SEP, abstract, for 2/255, with its clean
# victim; Image Shortcut Squeezing (Liu et al. 2023), README, for 8/255.
PUBLISHED = {None: 94.56, 2: 14.68, 8: 3.85}
PUBLISHED_FOR = (
    "CIFAR-10 as first released, without loss, and SEP at its best, whichever of its methods is used here; "
    "images that went through JPEG, or other data, are another problem"
)


Cost = dict[str, float]
Machine = dict[str, Any]


def make(run: Run, arguments: Sequence[str]) -> dict[str, Any]:
    """The card of everything in the run's folder that this start was asked for.

    Raises:
        ValueError: the data is not there, or a protected image breaks the budget.
    """
    trained = {name: load_json(run.out / f"{name}.json") for name in victims(run)}
    protected = {f"{eps_levels}/255": [load(path) for path in chunks(run, eps_levels)] for eps_levels in run.eps_levels}
    pieces = _pieces(run, protected)
    costs = {stage: [cost for cost, _ in done] for stage, done in pieces.items() if done}
    settings = dataclasses.asdict(run.settings)
    asked = {"eps_levels": run.eps_levels, "victim_seeds": run.victim_seeds}
    may_change = {"batch_size": run.batch_size or "auto", "chunk_images": run.chunk_images, "kernels": run.kernels}
    counts = {name: len(run.data[f"{name}_labels"]) for name in ("train", "test")}
    card: dict[str, Any] = {
        "name": "reproduce",
        "command": shlex.join(["python", "pipeline/reproduce.py", *arguments]),
        "data": {"folder": run.source.resolve().name, "sha256": run.settings.data},
        "settings": {**settings, **asked, **may_change, "training": dataclasses.asdict(TrainConfig(epochs=run.settings.epochs))},
        "images": counts,
        "missing": _missing(run, protected, trained),
        "surrogate": _surrogate(run.settings, counts["train"], costs.get("surrogate", [])),
        "protection": {
            budget: _protection(run, eps_levels, [chunk for chunk in kept if chunk])
            for eps_levels, (budget, kept) in zip(run.eps_levels, protected.items(), strict=True)
            if None not in kept
        },
        "victims": _victims(run, trained),
        "seconds": {stage: round(sum(cost["seconds"] for cost in each), 1) for stage, each in costs.items()},
        "memory_gib": {stage: round(max(cost["memory_gib"] for cost in each), 2) for stage, each in costs.items()},
        "machines": _machines(pieces),
    }
    if follows_the_paper(run.settings):
        card["published"] = {"clean" if eps is None else f"{eps}/255": accuracy for eps, accuracy in PUBLISHED.items()}
        card["published_for"] = PUBLISHED_FOR
    return card


def _training(run: Run, name: str) -> dict[str, Any] | None:
    """What a training has to tell, also one that has not finished."""
    return load_json(run.out / f"{name}.json") or load(run.out / f"{name}.pt")


def _pieces(run: Run, protected: dict[str, list[dict[str, Any] | None]]) -> dict[str, list[tuple[Cost, list[Machine]]]]:
    """What every piece of work cost, and which machines it may have been done on, by stage."""
    single: dict[str, list[dict[str, Any] | None]] = {
        "data": [run.data],
        "means": [load(means_file(run, epoch)) for epoch in run.settings.ensemble_epochs()],
        **{f"craft {budget}": kept for budget, kept in protected.items()},
    }
    trainings = {"surrogate": ["surrogate"], "victims": list(victims(run))}
    done = {stage: [(piece["cost"], [piece["machine"]]) for piece in pieces if piece] for stage, pieces in single.items()}
    for stage, names in trainings.items():
        kept = [_training(run, name) for name in names]
        done[stage] = [(row, training["machines"]) for training in kept if training for row in training["epochs"]]
    order = ("data", "surrogate", "means", *(f"craft {budget}" for budget in protected), "victims")
    return {stage: done[stage] for stage in order}


def _machines(pieces: dict[str, list[tuple[Cost, list[Machine]]]]) -> list[dict[str, Any]]:
    """Each machine that computed, with the stages it had a part in."""
    found: list[dict[str, Any]] = []
    for stage, done in pieces.items():
        for machine in [machine for _, machines in done for machine in machines]:
            known = next((other for other in found if machine.items() <= other.items()), None)
            if known is None:
                found.append({**machine, "stages": [stage]})
            elif stage not in known["stages"]:
                known["stages"].append(stage)
    return found


def _missing(run: Run, protected: dict[str, list[dict[str, Any] | None]], trained: dict[str, dict[str, Any] | None]) -> list[str]:
    """What this start was asked for and what is not there yet."""

    def done(name: str, epochs: int) -> str:
        return f"{name}, {len((_training(run, name) or {'epochs': ()})['epochs'])} of {epochs} epochs done"

    settings, missing = run.settings, []
    if settings.ensemble_epochs() and load_json(run.out / "surrogate.json") is None:
        missing.append(done("surrogate", settings.epochs))
    for budget, kept in protected.items():
        if None in kept:
            missing.append(f"images at {budget}, {len(kept) - kept.count(None)} of {len(kept)} chunks done")
    return missing + [done(name, settings.victim_epochs) for name, result in trained.items() if result is None]


def follows_the_paper(settings: Settings) -> bool:
    """Whether the published figures are the ones to compare with."""
    kind = METHODS[settings.method]
    return (
        (settings.network, settings.epochs, settings.victim_epochs) == ("resnet18", 120, 120)
        and kind.checkpoints is None
        and (settings.checkpoints, settings.inner_steps or kind.usual, settings.steps) == (kind.usual, kind.usual, 30)
        and settings.limit_train is settings.limit_test is None
    )


def _surrogate(settings: Settings, images: int, rows: list[dict[str, float]]) -> dict[str, Any] | None:
    if not rows:
        return None
    seconds = sum(row["seconds"] for row in rows)
    return {
        "network": settings.network,
        "train_accuracy": round(rows[-1]["train_accuracy"], 2),
        "images_per_second": round(images * len(rows) / seconds, 1),
    }


def _protection(run: Run, eps_levels: int, pieces: list[dict[str, Any]]) -> dict[str, Any]:
    """Largest change in levels, mean PSNR in dB over the images that changed at all, and the rate of gradients."""
    images, clean = torch.cat([chunk["images"] for chunk in pieces]), run.data["train_images"]
    check(images, clean, eps_levels)
    gradients, seconds = sum(chunk["gradients"] for chunk in pieces), sum(chunk["cost"]["seconds"] for chunk in pieces)
    decibels = _finite(psnr_db(*pair) for pair in zip(torch.split(images, 1000), torch.split(clean, 1000), strict=True))
    return {
        "linf_levels": int(linf_levels(images, clean).max()),
        "psnr_db": round(float(decibels.mean()), 2) if len(decibels) else None,
        "kernels": sorted({chunk["kernels"] for chunk in pieces}),
        "gradients": gradients,
        "gradients_per_second": round(gradients / seconds, 1),
    }


def _finite(parts: Iterable[Tensor]) -> Tensor:
    values = torch.cat(list(parts))
    return values[values.isfinite()]


def _victims(run: Run, trained: dict[str, dict[str, Any] | None]) -> list[dict[str, Any]]:
    """Clean and each budget, over the seeds that are trained; accuracies in percent of the clean test images."""
    groups: dict[int | None, dict[int, dict[str, Any]]] = {}
    for name, (eps_levels, seed) in victims(run).items():
        result = trained[name]
        if result is not None:
            groups.setdefault(eps_levels, {})[seed] = result
    found = []
    for eps_levels in (None, *run.eps_levels):
        group = groups.get(eps_levels, {})
        if not group:
            continue
        curves = [[row["test_accuracy"] for row in result["epochs"]] for result in group.values()]
        relabelled = [result["relabelled_accuracy"] for result in group.values()]
        found.append(
            {
                "network": run.settings.network,
                "data": "clean" if eps_levels is None else "protected",
                "budget": None if eps_levels is None else f"{eps_levels}/255",
                "countermeasure": "none",
                "seeds": list(group),
                "trainings": len(group),
                "last_accuracy": _spread([curve[-1] for curve in curves]),
                "peak_accuracy": _spread([max(curve) for curve in curves]),
                "relabelled_accuracy": None if None in relabelled else _spread(relabelled),
            }
        )
    return found


def _spread(values: list[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation, two decimals; one value says nothing about spread."""
    return {
        "mean": round(statistics.fmean(values), 2),
        "std": round(statistics.stdev(values), 2) if len(values) > 1 else None,
    }


def table(card: dict[str, Any]) -> str:
    """The card's accuracies and times, for a terminal."""
    published = card.get("published", {})
    head = ["test accuracy in %", "last epoch", "peak", "relabelled", "trainings", *(["published"] if published else [])]
    lines = [head]
    for victim in card["victims"]:
        figures = [_shown(victim[f"{kind}_accuracy"]) for kind in ("last", "peak", "relabelled")]
        name = "clean" if victim["budget"] is None else f"protected, {victim['budget']}"
        lines.append([name, *figures, str(victim["trainings"])])
        if published:
            lines[-1].append(str(published.get(victim["budget"] or "clean", "-")))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    rates = [f"{budget}: {of['gradients_per_second']:,.0f} gradients/s" for budget, of in card["protection"].items()]
    seconds = ", ".join(f"{stage} {value:,.0f}" for stage, value in card["seconds"].items())
    data = [f"published: for {card['published_for']}; here: {card['data']['folder']}"] if published else []
    missing = [f"not there yet: {what}" for what in card["missing"]]
    return "\n".join([*(rows if card["victims"] else ["no victim is trained yet"]), *data, *rates, f"seconds: {seconds}", *missing])


def _shown(figure: dict[str, float | None] | None) -> str:
    """`10.3 ± 0.4`."""
    if figure is None:
        return "-"
    return f"{figure['mean']:.1f}" + (f" ± {figure['std']:.1f}" if figure["std"] is not None else "")
