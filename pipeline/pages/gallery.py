"""The pictures that can be drawn of a run, from whatever stages have finished."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from pipeline.results.run_results import RunResults

if TYPE_CHECKING:
    from pipeline.pages.canvas import Theme

COUNTERED = "countermeasures-"  # followed by the victim's network

Drawing = Callable[["Theme"], bytes]  # a PNG in the colours of a theme


def drawings(results: RunResults) -> dict[str, Drawing]:
    """Return the pictures of a run by name, each to be drawn in the colours of a light or a dark page.

    They are those of `image_drawings`, `accuracy`, `classes`, `matrix` and `countermeasures-<network>` of victims, and `surrogate`.
    """
    return {**image_drawings(results), **_victim_drawings(results), **_surrogate_drawings(results)}


def image_drawings(results: RunResults) -> dict[str, Drawing]:
    """Return the pictures of a protection: `samples`, `extremes`, `imperceptibility`, `spectrum` and `similarity`."""
    if "protect" not in results.manifests:
        return {}
    from pipeline.pages import image_figures, training_figures  # matplotlib takes seconds to load: figures alone should not wait for it

    drawn: dict[str, Drawing] = {}
    samples, images, largest = results.samples, results.shown_images, results.count("protect", "linf_levels")
    extremes = [extreme for extreme in (samples.most, samples.least) if extreme]
    if images.pairs:
        drawn["samples"] = partial(image_figures.samples, [images.pairs[place] for place in images.first], largest)
    if extremes:
        notes = [f"{word}\n{psnr:.1f} dB" for word, (psnr, _) in zip(("most", "least"), extremes, strict=True)]
        drawn["extremes"] = partial(image_figures.samples, [images.pairs[place] for _, place in extremes], largest, notes=notes)
    if images.spectrum.count:
        drawn["imperceptibility"] = partial(image_figures.imperceptibility, samples.measures)
        drawn["spectrum"] = partial(image_figures.spectrum, images.spectrum)
    if results.similarities:
        drawn["similarity"] = partial(training_figures.similarity, results.similarities)
    return drawn


def _victim_drawings(results: RunResults) -> dict[str, Drawing]:
    from pipeline.pages import confusion_figures, training_figures

    drawn: dict[str, Drawing] = {}
    if not results.pairs:
        return drawn
    chance = results.chance
    if results.of_release:
        first = results.of_release[0]
        plain = [pair for pair in results.of_release if pair.clean.countermeasure == "none"]
        drawn["accuracy"] = partial(training_figures.accuracy, plain or [first], chance)
        tables = list(zip(("trained on clean images", "trained on protected images"), results.first_confusions, strict=True))
        drawn["classes"] = partial(confusion_figures.classes, tables, results.count("pack", "classes"))
    if len({pair.clean.countermeasure for pair in results.pairs}) > 1:
        drawn["matrix"] = partial(training_figures.matrix, results.pairs)
        for network in dict.fromkeys(pair.clean.network for pair in results.pairs):
            own = [pair for pair in results.pairs if pair.clean.network == network]
            drawn[COUNTERED + network] = partial(training_figures.accuracy, own, chance)
    return drawn


def _surrogate_drawings(results: RunResults) -> dict[str, Drawing]:
    from pipeline.pages import training_figures

    if "surrogate" not in results.manifests:
        return {}
    return {"surrogate": partial(training_figures.surrogate, results.checkpoints, results.count("protect", "epochs") or [])}
