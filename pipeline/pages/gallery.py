"""Which pictures can be drawn of a run, from the files of whatever stages have finished."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.results import run_results
from pipeline.results.run_results import Manifests
from pipeline.shards.shard import Sample, read_shard
from pipeline.shards.tables import read_table
from pipeline.storage.layout import SAMPLES
from pipeline.storage.run import Run
from sep.countermeasures.registry import clean_share

SHOWN_SAMPLES = 4
SPECTRUM_IMAGES = 128  # protected images the spectrum is the mean of
COUNTERED = "countermeasures-"  # followed by the victim's network


def draw(folder: Run, found: Manifests, *, dark: bool = False) -> dict[str, bytes]:
    """The PNGs of a run, by name.

    They are `samples`, `imperceptibility`, `spectrum` and `similarity` of a protection, `accuracy`, `classes`, `matrix` and
    `countermeasures-<network>` of victims, and `surrogate`; `dark` is for a dark page.
    """
    from pipeline.pages import (  # matplotlib takes seconds to load, which nobody should wait for who only wants figures
        confusion_figures,
        training_figures,
    )

    theme = training_figures.DARK if dark else training_figures.LIGHT
    drawn = _of_images(folder, found, theme) if "protect" in found else {}
    measured = run_results.pairs(run_results.trained(folder, found).rows)
    chance = run_results.chance(found) if measured else 0.0
    alone = [pair for pair in measured if clean_share(pair.clean.countermeasure) is None]  # with nothing but the release
    if alone:
        first = alone[0]
        plain = [pair for pair in alone if pair.clean.countermeasure == "none"]
        drawn["accuracy"] = training_figures.accuracy(plain or [first], chance, theme)
        tables = [(f"trained on {cell.data} images", run_results.confusion(folder, cell)) for cell in (first.clean, first.protected)]
        drawn["classes"] = confusion_figures.classes(tables, found["pack"].counts["classes"], theme)
    if len({pair.clean.countermeasure for pair in measured}) > 1:
        drawn["matrix"] = training_figures.matrix(measured, theme)
        for network in dict.fromkeys(pair.clean.network for pair in measured):
            own = [pair for pair in measured if pair.clean.network == network]
            drawn[COUNTERED + network] = training_figures.accuracy(own, chance, theme)
    if "surrogate" in found:
        chosen = found["protect"].counts["epochs"] if "protect" in found else []
        drawn["surrogate"] = training_figures.surrogate(run_results.checkpoints(folder), chosen, theme)
    return drawn


def _of_images(folder: Run, found: Manifests, theme: Any) -> dict[str, bytes]:
    from pipeline.pages import image_figures, training_figures

    drawn = {}
    if shown := triplets(folder, found, chosen_samples(folder, found)):
        drawn["samples"] = image_figures.samples(shown, found["protect"].counts["linf_levels"], theme)
    visible = run_results.imperceptibility(folder)
    if any(visible.values()):
        drawn["imperceptibility"] = image_figures.imperceptibility(visible, theme)
        drawn["spectrum"] = image_figures.spectrum(triplets(folder, found, changed_samples(folder, found)), theme)
    if alike := run_results.similarities(folder):
        drawn["similarity"] = training_figures.similarity(alike, theme)
    return drawn


def chosen_samples(folder: Run, found: Manifests) -> list[tuple[str, str]]:
    """Key and shard of the first image of a few classes, spread over the protected ones."""
    first: dict[int, tuple[str, str]] = {}
    for row in _rows(folder):
        first.setdefault(row["label"], (row["key"], row["shard"]))
    labels = sorted(first.keys() & set(found["protect"].counts["classes"]))
    count = min(SHOWN_SAMPLES, len(labels))
    return [first[labels[i * len(labels) // count]] for i in range(count)]


def changed_samples(folder: Run, found: Manifests) -> list[tuple[str, str]]:
    """Key and shard of the first images that were changed: as few shards as can be, because these have to be read.

    Not all of a protected class are: one whose pixel had the colour already stays as it was.
    """
    classes = set(found["protect"].counts["classes"])
    changed = [(row["key"], row["shard"]) for row in _rows(folder) if row["label"] in classes and row["linf_levels"] > 0]
    return sorted(changed, key=lambda sample: sample[1])[:SPECTRUM_IMAGES]


def _rows(folder: Run) -> Iterator[dict[str, Any]]:
    table = read_table(folder.child("protect"), SAMPLES, ["key", "label", "shard", "linf_levels"])
    for batch in table.to_batches(2**14):
        yield from batch.to_pylist()


def triplets(folder: Run, found: Manifests, wanted: list[tuple[str, str]]) -> list[Any]:
    """The images named by key and shard, before and after, in that order; reads only the shards these are in."""
    from pipeline.pages.image_figures import Triplet

    classes, images = found["pack"].counts["classes"], {stage: _samples(folder, found, stage, wanted) for stage in ("pack", "protect")}
    return [Triplet(classes[images["pack"][key].label], images["pack"][key].pixels, images["protect"][key].pixels) for key, _ in wanted]


def _samples(folder: Run, found: Manifests, stage: str, wanted: list[tuple[str, str]]) -> dict[str, Sample]:
    samples: dict[str, Sample] = {}
    for shard in found[stage].shards["train"]:
        keys = {key for key, name in wanted if name == shard.name}
        if keys:
            samples |= {sample.key: sample for sample in read_shard(folder.child(stage), shard) if sample.key in keys}
    return samples
