"""The card of a run: what has been measured so far, as JSON and as a small table. Any part of the run may be missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline.config.presets import from_tree
from pipeline.config.schema import RunConfig
from pipeline.config.sweep_grid import grid, shared_stages
from pipeline.results.published import PUBLISHED, PUBLISHED_FOR, follows_the_paper
from pipeline.results.run_results import RunResults
from pipeline.results.victims import Spread
from pipeline.results.waiting import waiting_percent
from pipeline.storage.finished_pieces import Piece, read_piece
from pipeline.storage.layout import PARTS, WEIGHTS, trial_name, trial_record
from pipeline.storage.run import Point, Run, point

ACCURACIES = ("last", "peak", "relabelled")
SECTIONS = ("preset", "seed", "views", "pack", "surrogate", "victim")
Card = dict[str, Any]


@dataclass(frozen=True)
class Release:
    """A release of the run, or of a point of its sweep.

    Attributes:
        asked: its configuration, as this start has it.
        folder: of the run, or of the point.
        name: of the point; empty for the run itself, and where points differ in nothing but the budget.
    """

    asked: RunConfig
    folder: Run
    name: str

    @cached_property
    def results(self) -> RunResults:
        """Everything measured on it."""
        return RunResults.read(self.folder)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The tree of settings that it was made with, where that has happened."""
        return self.results.configuration(self.asked)

    @cached_property
    def label(self) -> str:
        """The budget, as `8/255`, or the point's name."""
        counts = self.results.manifests["pack"].counts
        return self.name or str(from_tree(self.settings).protect.budget((3, counts["height"], counts["width"])))

    @cached_property
    def trials(self) -> dict[str, Piece]:
        """Records of the victims that have been trained, by name."""
        names = [trial_name(row["network"], row["data"], row["countermeasure"], row["seed"]) for row in self.results.trials]
        victim = self.folder.child("victim")
        return {name: piece for name in names if (piece := read_piece(victim, trial_record(name), None))}


def make(config: RunConfig, folder: Run) -> Card | None:
    """Return the card of everything measured so far; None where the images are not packed yet.

    Raises:
        ValueError: a record of the run is damaged.
        OSError: storage refused.
    """
    run = RunResults.read(folder)
    if "pack" not in run.manifests:
        return None
    counts, releases = run.manifests["pack"].counts, _releases(config, folder)
    card: Card = {
        "name": folder.path.rstrip("/").rpartition("/")[2],
        "data": {"source": releases[0].settings["data"].rstrip("/").rpartition("/")[2], "sha256": run.data_digest},
        "settings": {**_settings(releases), "sweep": list(config.sweep)},
        "images": {"train": counts["train"], "test": counts["test"], "classes": len(counts["classes"])},
        "missing": list(_missing(config, run, folder, releases)),
        "surrogate": _surrogates(run),
        "protection": {release.label: _protection(release.results) for release in releases if "protect" in release.results.manifests},
        "victims": _victims(releases),
    }
    card["seconds"] = _seconds(run, card["surrogate"], releases)
    compared = [release.label for release in releases if follows_the_paper(from_tree(release.settings), counts)]
    if published := {label: PUBLISHED[label] for label in ("clean", *compared) if compared and label in PUBLISHED}:
        card |= {"published": published, "published_for": PUBLISHED_FOR}
    return card


def _releases(config: RunConfig, folder: Run) -> list[Release]:
    if isinstance(folder, Point) or not (points := grid(config)):
        return [Release(config, folder, "")]
    named = any(list(asked.settings) != ["protect.eps_levels"] for asked in points)
    return [Release(asked.config, point(folder, asked.name), asked.name if named else "") for asked in points]


def _settings(releases: list[Release]) -> dict[str, Any]:
    """Settings that all releases have in common; swept settings stand with each, and usual settings of a swept method differ with it."""
    first, swept = releases[0].settings, releases[0].results.swept
    own = [release.settings["protect"] for release in releases]
    common = [name for name, value in own[0].items() if f"protect.{name}" not in swept and all(each[name] == value for each in own)]
    seen = {"input_size": first["input_size"]} if first["input_size"] else {}
    return {**{name: first[name] for name in SECTIONS}, **seen, "protect": {name: own[0][name] for name in common}}


def _missing(config: RunConfig, run: RunResults, folder: Run, releases: list[Release]) -> Iterator[str]:
    """Name what this configuration asks for and has not finished."""
    if "surrogate" in (shared_stages(config) if config.sweep else config.needed_stages) and "surrogate" not in run.manifests:
        done = sum(name.endswith(f"/{WEIGHTS}") for name in folder.child("surrogate").names(recursive=True))
        yield f"surrogate: {done} of {len(config.surrogate.networks) * config.surrogate.epochs} epochs done"
    for release in releases:
        if "protect" in config.stages and "protect" not in release.results.manifests:
            done = sum(name.endswith(".json") for name in release.folder.child("protect").child(PARTS).names())
            yield f"protect {release.label}: {done} of {len(run.manifests['pack'].shards['train'])} shards done"
        victim = config.victim
        asked = 2 * len(victim.networks) * len(victim.countermeasures) * len(victim.seeds)
        if "victim" in config.stages and "victim" not in release.results.manifests:
            yield f"victim {release.label}: {len(release.trials)} of {asked} trainings done"


def _surrogates(run: RunResults) -> list[dict[str, Any]]:
    """Loss and accuracy (percent) of each network on its training images in the last epoch."""
    found = []
    for network, epochs in (run.checkpoints if "surrogate" in run.manifests else {}).items():
        seconds, last = sum(epoch["metrics"]["seconds"] for epoch in epochs), epochs[-1]["metrics"]
        rate = run.count("pack", "train") * len(epochs) / seconds
        precisions = sorted({epoch["precision"] for epoch in epochs})
        figures = {"loss": round(last["loss"], 4), "train_accuracy": round(last["accuracy"], 2), "seconds": round(seconds, 1)}
        figures |= {"images_per_second": round(rate, 1), "loader_percent": round(waiting_percent([each["metrics"] for each in epochs]), 1)}
        found.append({"network": network, "precision": precisions, **figures})
    return found


def _protection(results: RunResults) -> dict[str, Any]:
    """Largest change in levels, mean PSNR in dB over the images that changed at all, and the rate of gradients."""
    manifest = results.manifests["protect"]
    timing, gradients = manifest.timing, manifest.counts["gradients"]
    # Noise that networks are trained against takes its gradients before images are protected with it.
    seconds = timing["crafting_seconds"] + (timing["preparation_seconds"] if "noise_rounds" in manifest.counts else 0)
    names = ("method", "members", "steps", "precision", "class_means_precision", "kernels", "linf_levels", "psnr_db", "gradients")
    figures = {**results.swept, **{name: manifest.counts[name] for name in names if name in manifest.counts}}
    figures["psnr_db"] = round(figures["psnr_db"], 2)
    return {**figures, "gradients_per_second": round(gradients / seconds, 1) if gradients else None}


def _victims(releases: list[Release]) -> list[dict[str, Any]]:
    """Accuracies in percent of the clean test images, over the seeds; a training that several releases share stands with the first."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    seen: set[str] = set()
    for release in releases:
        for trial in release.trials.values():
            if trial.made_from not in seen:
                key = (*(trial.content[name] for name in ("network", "countermeasure", "data")), release.label)
                groups.setdefault(key, []).append(trial.content)
            seen.add(trial.made_from)
    return [
        {
            **{"network": network, "countermeasure": countermeasure, "data": data, "release": label if data == "protected" else None},
            "seeds": [trial["seed"] for trial in trials],
            **{f"{kind}_accuracy": _spread([trial[f"{kind}_accuracy"] for trial in trials]) for kind in ACCURACIES},
            "precision": sorted({trial["precision"] for trial in trials}),
            "loader_percent": round(waiting_percent(trials), 1),
        }
        for (network, countermeasure, data, label), trials in groups.items()
    ]


def _spread(values: list[float]) -> dict[str, float | None]:
    """Return mean and sample standard deviation; one value says nothing about spread."""
    of = Spread.of(values)
    return {"mean": round(of.mean, 2), "std": None if of.deviation is None else round(of.deviation, 2)}


def _seconds(run: RunResults, surrogates: list[dict[str, Any]], releases: list[Release]) -> dict[str, float]:
    """Return the time by stage over all starts, summed over epochs, shards and trainings; that of pack is of its last start."""
    seconds = {"pack": run.manifests["pack"].seconds}
    seconds |= {"surrogate": sum(each["seconds"] for each in surrogates)} if surrogates else {}
    for release in releases:
        if found := release.results.manifests.get("protect"):
            seconds[f"protect {release.label}"] = found.timing["preparation_seconds"] + found.timing["crafting_seconds"]
    trained = {trial.made_from: trial.content["seconds"] for release in releases for trial in release.trials.values()}
    seconds |= {"victim": sum(trained.values())} if trained else {}
    return {stage: round(value, 1) for stage, value in seconds.items()}
