"""Descriptions of each picture of a report, in words with figures, for readers who cannot see it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pipeline.pages.gallery import COUNTERED
from pipeline.results.run_results import RunResults
from pipeline.results.victims import VictimPair
from pipeline.storage.records import shown

MEASURES = {"psnr_db": ("PSNR", "dB", ".1f"), "ssim": ("SSIM", "", ".3f"), "linf_levels": ("largest change", "grey levels", ".0f")}
SHOWN = 6  # victims that are described one by one


def alt_texts(results: RunResults, pictures: Collection[str]) -> dict[str, str]:
    """Return the text of each of these pictures by its name."""
    return {name: _text(results, name) for name in pictures}


def _text(results: RunResults, name: str) -> str:
    if name.startswith(COUNTERED):
        network = name.removeprefix(COUNTERED)
        return _curves([pair for pair in results.pairs if pair.clean.network == network], results.chance)
    if name == "accuracy":
        plain = [pair for pair in results.of_release if pair.clean.countermeasure == "none"]
        return _curves(plain or list(results.of_release[:1]), results.chance)
    return {
        "samples": _samples,
        "extremes": _extremes,
        "imperceptibility": _imperceptibility,
        "spectrum": _spectrum,
        "classes": _classes,
        "matrix": _matrix,
        "surrogate": _surrogate,
        "similarity": _similarity,
    }[name](results)


def _samples(results: RunResults) -> str:
    labels = results.count("protect", "classes")
    return (
        "Rows of three: an original, the same image protected, and the difference between them, amplified. One image each of up to "
        f"four of {len(labels)} classes."
    )


def _extremes(results: RunResults) -> str:
    most, least = results.samples.most, results.samples.least
    assert most
    assert least
    return (
        f"Two rows of an original, the same image protected, and the amplified difference: the image that was changed most, at a PSNR of "
        f"{most[0]:.1f} dB, and the one that was changed least, at {least[0]:.1f} dB."
    )


def _imperceptibility(results: RunResults) -> str:
    parts = []
    for name, (word, unit, form) in MEASURES.items():
        values = results.samples.measures[name]
        if values.size:
            parts.append(f"{word} from {values.min():{form}} to {values.max():{form}} {unit}, mean {values.mean(dtype=float):{form}}")
    return f"Histograms over {len(results.samples.measures['linf_levels']):,} changed images: {'; '.join(parts)}."


def _spectrum(results: RunResults) -> str:
    return (
        "A map of the strength of the changes by direction and frequency, and two curves by frequency alone: of the images, and below it "
        "of the changes."
    )


def _curves(pairs: Sequence[VictimPair], chance: float) -> str:
    ends = [
        f"{pair.name} ends at {pair.clean.last.mean:.1f} % trained on the originals and {pair.protected.last.mean:.1f} % on the release"
        for pair in pairs
    ]
    return f"Curves of accuracy by epoch: {shown(ends, SHOWN)}; guessing gives {chance:.3g} %."


def _classes(results: RunResults) -> str:
    first, names = results.of_release[0], results.count("pack", "classes")
    table = results.first_confusions[1]
    wrong = [(count, i, j) for i, row in enumerate(table) for j, count in enumerate(row) if i != j and count]
    said = ""
    if wrong:
        count, truth, taken = max(wrong)
        said = f" Its most frequent mistake takes {names[truth]} for {names[taken]}, in {100 * count / sum(table[truth]):.0f} % of cases."
    return (
        f"Two tables of {len(names)} classes, true by predicted. Trained on the originals, {first.name} is right in "
        f"{first.clean.last.mean:.1f} % of cases; trained on the release, in {first.protected.last.mean:.1f} %.{said}"
    )


def _matrix(results: RunResults) -> str:
    best = max(results.of_release or results.pairs, key=lambda pair: pair.protected.last.mean)
    names = {pair.clean.countermeasure for pair in results.pairs}
    networks = {pair.clean.network for pair in results.pairs}
    return (
        f"A table of {len(names)} countermeasures by {len(networks)} networks, each trained on the originals and on the release. The "
        f"most that the release teaches is {best.protected.last.mean:.1f} %, to {best.name}; the originals teach it "
        f"{best.clean.last.mean:.1f} %."
    )


def _surrogate(results: RunResults) -> str:
    last = {name: (len(epochs), epochs[-1]["metrics"]) for name, epochs in results.checkpoints.items()}
    ends = [
        f"{name} reaches {end['accuracy']:.1f} % after {count} epochs, at a loss of {end['loss']:.3f}"
        for name, (count, end) in last.items()
    ]
    return f"Curves of training accuracy and loss by epoch: {shown(ends, SHOWN)}."


def _similarity(results: RunResults) -> str:
    means = [f"{each.network or 'different networks'}: {each.mean:.2f}" for each in results.similarities]
    return f"Tables of cosines between the gradients of checkpoints, as shades. Their means without the diagonal: {shown(means, SHOWN)}."
