"""The verdict on a release, in a few words: whether it holds, where it is weak, and what nobody has tested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.results.outcomes import Outcome, least, outcomes, regained, unaided
from pipeline.results.run_results import RunResults
from pipeline.results.thresholds import ALIKE, error, interval, lost, much, share_lost
from pipeline.results.victims import VictimPair
from pipeline.storage.records import shown

Label = Literal["holds", "holds in part", "does not hold", "not measured"]
LARGE = 2.0  # points; a smaller uncertainty goes without saying
SHOWN = 6  # names in one list


@dataclass(frozen=True)
class Attempt:
    """Something that an adversary may well try: its name in a sentence, and the countermeasure that tests it."""

    name: str
    countermeasure: str

    def tested_by(self, countermeasures: Sequence[str]) -> bool:
        """Return whether one of these, or a part of it, is of the kind, whatever its strength."""
        kind = self.countermeasure.rstrip("0123456789")
        return any(part.startswith(kind) for name in countermeasures for part in name.split("+"))


# What has undone protections of this kind in the literature (Liu et al. 2023; Sandoval-Segura et al. 2023; Qin et al. 2023; APBench).
ATTEMPTS = (
    Attempt("JPEG", "jpeg-10"),
    Attempt("grayscale", "grayscale"),
    Attempt("blur", "gaussian-blur"),
    Attempt("adversarial training", "adversarial-8"),
    Attempt("UEraser", "ueraser"),
    Attempt("orthogonal projection", "orthogonal-projection"),
)


@dataclass(frozen=True)
class Verdict:
    """What a run says of its release: a label, and sentences."""

    label: Label
    sentences: tuple[str, ...]

    def __str__(self) -> str:
        """Return the sentences."""
        return " ".join(self.sentences)


def verdict(results: RunResults) -> Verdict:
    """Return the verdict on the release of a run; the tracker sets it as a tag."""
    if "protect" not in results.manifests:
        return Verdict("not measured", ("Nothing is protected yet.",))
    measured, guess = results.of_release, results.chance
    if not measured:
        return Verdict("not measured", ("Not measured: no victim is finished that was trained on this release alone.",))
    first, tests = measured[0], results.measured_images
    clean, protected = first.clean.last.mean, first.protected.last.mean
    if clean <= guess + error(guess, tests):
        return Verdict("not measured", ("Says nothing yet: even the originals teach the victim hardly more than guessing.",))
    trained = "plain training" if first.clean.countermeasure == "none" else first.clean.countermeasure
    if lost(first) < much(first, guess):
        said = f"Does not hold against {trained}: the release teaches {protected:.1f} %, the originals {clean:.1f} %."
        return Verdict("does not hold", (said, *_uncertain(first, tests)))
    whole = protected <= guess + error(guess, tests) or share_lost(first, guess) >= 1 - ALIKE
    judged = outcomes(measured, guess, tests)
    held = [name for name, (outcome, _) in judged.items() if outcome is Outcome.HOLDS]
    against = _listed([trained, *held])
    holds = f"Holds against {against}." if whole else f"Holds in part against {against}: the release still teaches {protected:.1f} %."
    weak = _weak(measured, guess, tests)
    return Verdict("holds" if whole else "holds in part", (holds, *weak, *_untested(measured), *_uncertain(first, tests)))


def untested(measured: Sequence[VictimPair]) -> list[Attempt]:
    """Return what an adversary may well try, and no victim here has tried."""
    tried = list(dict.fromkeys(pair.clean.countermeasure for pair in measured))
    return [attempt for attempt in ATTEMPTS if not attempt.tested_by(tried)]


def _weak(measured: Sequence[VictimPair], guess: float, tests: int) -> list[str]:
    """Name what weakens or undoes the protection."""
    judged, plain = outcomes(measured, guess, tests), unaided(measured, guess, tests)
    weak = []
    if share := regained(measured[0], guess):
        weak.append(f"renaming the answers regains {share:.0f} %")
    for name, (outcome, pair) in judged.items():
        if outcome is Outcome.WEAKENED:
            back = 100 * (1 - share_lost(pair, guess) / share_lost(plain[pair.clean.network], guess))
            weak.append(f"{name} regains {back:.0f} %")
    undone = [name for name, (outcome, _) in judged.items() if outcome is Outcome.UNDONE]
    able = (pair for pair in measured if pair.clean.countermeasure == "none" and pair.clean.last.mean >= least(guess, tests))
    deaf = [pair.clean.network for pair in able if pair.clean.network not in plain]
    sentences = [f"Weak: {shown(weak, SHOWN)}."] if weak else []
    sentences += [f"Undone by {_listed(undone)}."] if undone else []
    return sentences + ([f"Does not hold against {_listed(deaf)}."] if deaf else [])


def _untested(measured: Sequence[VictimPair]) -> list[str]:
    names = [attempt.name for attempt in untested(measured)]
    names += ["other networks"] if len({pair.clean.network for pair in measured}) == 1 else []
    return [f"Not tested: {', '.join(names)}."] if names else []


def _uncertain(pair: VictimPair, tests: int) -> list[str]:
    """Say how uncertain the accuracies are, where few test images decide."""
    low, high = interval(pair.protected.last.mean, tests)
    if high - low <= 2 * LARGE:
        return []
    return [f"With {tests:,} test images, {pair.protected.last.mean:.1f} % may be anything from {low:.0f} to {high:.0f} %."]


def _listed(names: Sequence[str]) -> str:
    """Return names as `a, b and c`; only the first of many."""
    few = list(names[:SHOWN]) + ([f"{len(names) - SHOWN} others"] if len(names) > SHOWN else [])
    return " and ".join([", ".join(few[:-1]), few[-1]] if len(few) > 1 else few)
