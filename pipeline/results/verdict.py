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
from sep.countermeasures.registry import plan
from sep.views.registry import PLAIN, is_plain

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
        (kind,) = plan(self.countermeasure).kinds
        return any(each.startswith(kind) for name in countermeasures for each in plan(name).kinds)


# What has undone protections of this kind in the literature (Liu et al. 2023; Sandoval-Segura et al. 2023; Qin et al. 2023; APBench; Li et
# al. 2026; Wang et al. 2024).
ATTEMPTS = (
    Attempt("JPEG", "jpeg-10"),
    Attempt("grayscale", "grayscale"),
    Attempt("blur", "gaussian-blur"),
    Attempt("adversarial training", "adversarial-8"),
    Attempt("UEraser", "ueraser"),
    Attempt("orthogonal projection", "orthogonal-projection"),
    Attempt("pretrained networks", "pretrained"),
    Attempt("contrastive learning", "contrastive"),
)


# What happens to stored pictures, to hold against a mix of views: enough for any mix to leave some outside.
HELD_OUT = ("resize-50", "webp-75", "jpeg-30", "screenshot", "gaussian-blur", "bit-depth-2", "jpeg-75")
LEAST_HELD_OUT = 2


@dataclass(frozen=True)
class Verdict:
    """The verdict of a run on its release: a label, and sentences."""

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
    tests = results.measured_images
    able = [pair for pair in measured if pair.clean.last.mean >= least(guess, tests)]
    if not able:
        return Verdict("not measured", ("Says nothing yet: even the originals teach the victim hardly more than guessing.",))
    plain = [pair for pair in able if pair.clean.countermeasure == "none"]
    group = plain or able
    heard = [pair for pair in group if lost(pair) >= much(pair, guess)]
    worst = min(heard or group, key=lambda pair: share_lost(pair, guess))
    clean, protected = worst.clean.last.mean, worst.protected.last.mean
    trained = "plain training" if plain else _listed(sorted({pair.clean.countermeasure for pair in heard or group}))
    if not heard:
        said = f"Does not hold against {trained}: the release teaches {protected:.1f} %, the originals {clean:.1f} %."
        return Verdict("does not hold", (said, *uncertain(protected, tests)))
    whole = protected <= guess + error(guess, tests) or share_lost(worst, guess) >= 1 - ALIKE
    judged = outcomes(measured, guess, tests)
    held = [name for name, (outcome, _) in judged.items() if outcome is Outcome.HOLDS] if plain else []
    against = _listed([trained, *held])
    holds = f"Holds against {against}." if whole else f"Holds in part against {against}: the release still teaches {protected:.1f} %."
    undone = any(outcome is Outcome.UNDONE for outcome, _ in judged.values())
    weak = _weak(measured, guess, tests)
    label: Label = "holds" if whole and not undone and len(heard) == len(group) else "holds in part"
    return Verdict(label, (holds, *weak, *_untested(results), *uncertain(protected, tests)))


def untested(results: RunResults) -> list[Attempt]:
    """Return what an adversary may well try, and no victim here has tried, or none that learns from clean images."""
    measured, enough = results.of_release, least(results.chance, results.measured_images)
    tried = list(dict.fromkeys(pair.clean.countermeasure for pair in measured if pair.clean.last.mean >= enough))
    return [attempt for attempt in ATTEMPTS if not attempt.tested_by(tried)]


def held_out(results: RunResults) -> list[str]:
    """Return what to test yet of what a release was not crafted for, so that two changes of stored pictures stand outside its mix.

    Nothing where two are tested, or the release was crafted through no views.
    """
    views = results.count("protect", "views") or PLAIN
    if is_plain(views):
        return []
    tried = {pair.clean.countermeasure for pair in results.of_release}
    outside = [each for each in map(plan, tried) if all(part.stored for part in each.parts) and not each.crafted_for(views)]
    left = [name for name in HELD_OUT if name not in tried and not plan(name).crafted_for(views)]
    return left[: max(0, LEAST_HELD_OUT - len(outside))]


def _weak(measured: Sequence[VictimPair], guess: float, tests: int) -> list[str]:
    """Name what weakens or undoes the protection."""
    judged, plain = outcomes(measured, guess, tests), unaided(measured, guess, tests)
    weak = []
    if share := regained(measured[0], guess):
        weak.append(f"renaming the predictions regains {share:.0f} %")
    for name, (outcome, pair) in judged.items():
        if outcome is Outcome.WEAKENED:
            usual = share_lost(plain[pair.clean.network], guess) if pair.clean.network in plain else 1.0
            back = 100 * (1 - share_lost(pair, guess) / usual)
            weak.append(f"{name} regains {back:.0f} %")
    undone = [name for name, (outcome, _) in judged.items() if outcome is Outcome.UNDONE]
    able = (pair for pair in measured if pair.clean.countermeasure == "none" and pair.clean.last.mean >= least(guess, tests))
    deaf = [pair.clean.network for pair in able if pair.clean.network not in plain]
    sentences = [f"Weak: {shown(weak, SHOWN)}."] if weak else []
    sentences += [f"Undone by {_listed(undone)}."] if undone else []
    unknown = [name for name, (outcome, _) in judged.items() if outcome is Outcome.UNKNOWN]
    sentences += [f"Says nothing of {_listed(unknown)}, with which even the originals teach hardly more than guessing."] if unknown else []
    return sentences + ([f"Does not hold against {_listed(deaf)}."] if deaf else [])


def _untested(results: RunResults) -> list[str]:
    names = [attempt.name for attempt in untested(results)]
    names += ["other networks"] if len({pair.clean.network for pair in results.of_release}) == 1 else []
    said = [f"Not tested: {', '.join(names)}."] if names else []
    mix = "Tested by fewer than two changes of stored images that it was not crafted for, so it may hold against no others."
    return said + ([mix] if held_out(results) else [])


def uncertain(accuracy: float, tests: int) -> list[str]:
    """Say how uncertain an accuracy is, in percent, where few test images decide."""
    low, high = interval(accuracy, tests)
    if high - low <= 2 * LARGE:
        return []
    return [f"With {tests:,} test images, {accuracy:.1f} % may be anything from {low:.0f} to {high:.0f} %."]


def _listed(names: Sequence[str]) -> str:
    """Return names as `a, b and c`; only the first of many."""
    few = list(names[:SHOWN]) + ([f"{len(names) - SHOWN} others"] if len(names) > SHOWN else [])
    return " and ".join([", ".join(few[:-1]), few[-1]] if len(few) > 1 else few)
