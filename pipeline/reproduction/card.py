"""What a run of the protocol on one device has measured: a JSON card, and a table for people. Any part of it may be there.

Legend: B images, H W pixels.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import shlex
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torchvision
from torch import Tensor

from pipeline.reproduction.pieces import load, load_json
from pipeline.reproduction.protocol import Run, Settings
from pipeline.reproduction.stages import chunks, means_file, protected_images, victims
from sep.budget import linf_levels, psnr_db
from sep.fitting import TrainConfig

# Last-epoch accuracy of a ResNet18 in percent, by budget in levels, None for clean images. SEP, abstract, for 2/255, with its clean
# victim; Image Shortcut Squeezing (Liu et al. 2023), README, for 8/255.
PUBLISHED = {None: 94.56, 2: 14.68, 8: 3.85}


def hardware() -> str:
    """Processor, cores, memory and GPU of this machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} cores, {model}, {memory:.0f} GiB, {platform.system()}, {gpu}"


def make(run: Run, arguments: Sequence[str]) -> dict[str, Any]:
    """The card of everything in the run's folder that this start was asked for.

    Raises:
        ValueError: the data is not there, or a protected image breaks the budget.
    """
    costs: dict[str, list[dict[str, float]]] = {"data": [run.data["cost"]]}
    surrogate = load_json(run.out / "surrogate.json")
    costs["surrogate"] = surrogate["epochs"] if surrogate else []
    kept_means = [load(means_file(run, epoch)) for epoch in run.settings.ensemble_epochs()]
    costs["means"] = [kept["cost"] for kept in kept_means if kept]
    protection = {}
    for eps_levels in run.eps_levels:
        kept = [load(path) for path in chunks(run, eps_levels)]
        if None not in kept:
            pieces = [chunk for chunk in kept if chunk]
            protection[f"{eps_levels}/255"] = _protection(run, eps_levels, pieces)
            costs[f"craft {eps_levels}/255"] = [chunk["cost"] for chunk in pieces]
    trained = {name: load_json(run.out / f"{name}.json") for name in victims(run)}
    costs["victims"] = [row for result in trained.values() if result for row in result["epochs"]]
    settings = dataclasses.asdict(run.settings)
    asked = {"eps_levels": run.eps_levels, "victim_seeds": run.victim_seeds, "batch_size": run.batch_size or "auto"}
    counts = {name: len(run.data[f"{name}_labels"]) for name in ("train", "test")}
    card: dict[str, Any] = {
        "name": "reproduce",
        "command": shlex.join(["python", "pipeline/reproduce.py", *arguments]),
        "settings": {**settings, **asked, "training": dataclasses.asdict(TrainConfig(epochs=run.settings.epochs))},
        "images": counts,
        "surrogate": _surrogate(run.settings, counts["train"], costs["surrogate"]),
        "protection": protection,
        "victims": _victims(run, trained),
        "seconds": {stage: round(sum(cost["seconds"] for cost in each), 1) for stage, each in costs.items() if each},
        "memory_gib": {stage: round(max(cost["memory_gib"] for cost in each), 2) for stage, each in costs.items() if each},
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__}
        | {"pyarrow": pa.__version__},
    }
    if follows_the_paper(run.settings):
        card["published"] = {"clean" if eps is None else f"{eps}/255": accuracy for eps, accuracy in PUBLISHED.items()}
    return card


def follows_the_paper(settings: Settings) -> bool:
    """Whether the published figures are the ones to compare with."""
    return (
        (settings.network, settings.epochs, settings.victim_epochs) == ("resnet18", 120, 120)
        and (settings.method, settings.checkpoints, settings.inner_steps or 15, settings.steps) == ("sep-fa-vr", 15, 15, 30)
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
    images, clean = protected_images(run, eps_levels), run.data["train_images"]
    gradients, seconds = sum(chunk["gradients"] for chunk in pieces), sum(chunk["cost"]["seconds"] for chunk in pieces)
    decibels = _finite(psnr_db(*pair) for pair in zip(torch.split(images, 1000), torch.split(clean, 1000), strict=True))
    return {
        "linf_levels": int(linf_levels(images, clean).max()),
        "psnr_db": round(float(decibels.mean()), 2) if len(decibels) else None,
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
    return "\n".join([*(rows if card["victims"] else ["no victim is trained yet"]), *rates, f"seconds: {seconds}"])


def _shown(figure: dict[str, float | None] | None) -> str:
    """`10.3 ± 0.4`."""
    if figure is None:
        return "-"
    return f"{figure['mean']:.1f}" + (f" ± {figure['std']:.1f}" if figure["std"] is not None else "")
