"""Findings: what the figures of a run say, and what they do not, in plain sentences."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pipeline.results.dilution_findings import on_diluted
from pipeline.results.outcomes import least, outcomes, regained, unaided
from pipeline.results.run_results import RunResults
from pipeline.results.thresholds import ALIKE, NEAR, error, lost, much, share_lost
from pipeline.results.victims import VictimPair
from pipeline.storage.records import shown
from sep.countermeasures.registry import plan
from sep.methods.registry import METHODS

OUTCOMES = (  # of a countermeasure: each begins a sentence
    "The protection holds against",
    "It is weakened, but not undone, by",
    "It is undone by",
    "Nothing can be said of countermeasures under which even clean images teach the victim hardly more than guessing:",
)
SHOWN_MISSING = 20  # names of victims
MAPS = {"shift": "fixed shift of labels", "random-class": "fixed map of labels"}  # targets that one renaming of the classes undoes


@dataclass(frozen=True)
class Findings:
    """Sentences: on the whole, and one for each way in which countermeasures turned out."""

    overall: tuple[str, ...]
    countermeasures: tuple[str, ...] = ()

    @property
    def sentences(self) -> tuple[str, ...]:
        """All of them."""
        return self.overall + self.countermeasures


def findings(results: RunResults) -> Findings:
    """Say what came out, for the protected classes and, where there are any, for the others."""
    if not results.pairs:
        return Findings(("No victim is finished yet on both clean and protected images, so this run does not say how well it protects.",))
    diluted = on_diluted(results.pairs, results.chance, results.measured_images)
    measured = results.of_release
    if not measured:
        said = "No victim is finished yet that was trained on nothing but the release, so this run does not say how well it protects."
        return Findings((said,), diluted)
    guess, tests, pair = results.chance, results.measured_images, measured[0]
    overall = [
        _on_first(results, pair),
        *_on_protection(results, pair),
        *_on_other_classes(results, pair),
        *_on_networks(results, measured),
        *_on_share(results),
        *_on_input_size(results),
    ]
    if worst := _weakest(measured, guess, tests):
        left, clean = worst.protected.last.mean, worst.clean.last.mean
        overall.append(f"The protection is weakest against {worst.name}: {left:.1f} % on protected images, {clean:.1f} % on clean ones.")
    return Findings(tuple(overall), _on_countermeasures(measured, guess, tests, results.count("protect", "views") or ()) + diluted)


def _on_first(results: RunResults, pair: VictimPair) -> str:
    clean, protected = pair.clean.last.mean, pair.protected.last.mean
    some = pair.clean.other is not None
    of_classes = f" of the {len(results.count('protect', 'classes'))} protected classes" if some else ""
    return (
        f"Trained on the clean images, {pair.name} gets {clean:.1f} % of the clean test images{of_classes} right; trained on the "
        f"{'release' if some else 'protected images'}, {protected:.1f} %: {_apart(clean, protected)}."
    )


def _weakest(measured: Sequence[VictimPair], guess: float, tests: int) -> VictimPair | None:
    """Return the victim that loses the smallest share of what it could lose, if that is clearly less than the first victim loses."""
    first, enough = measured[0], least(guess, tests)
    able = [pair for pair in measured[1:] if pair.clean.last.mean >= enough]
    if not able or first.clean.last.mean < enough or lost(first) < much(first, guess):
        return None
    worst = min(able, key=lambda pair: share_lost(pair, guess))
    return worst if share_lost(worst, guess) < share_lost(first, guess) - ALIKE else None


def _on_countermeasures(measured: Sequence[VictimPair], guess: float, tests: int, views: Collection[str] = ()) -> tuple[str, ...]:
    """Say which countermeasures the protection withstands; those that the release was crafted for, by its `views`, are marked."""
    several = len(unaided(measured, guess, tests)) > 1
    groups: list[list[str]] = [[] for _ in OUTCOMES]
    for name, (outcome, worst) in outcomes(measured, guess, tests).items():
        clean, left = worst.clean.last.mean, worst.protected.last.mean
        part = f"{left:.1f} % of {clean:.1f} %"
        figures = (part, part, f"{left:.1f} %, where clean images treated alike give {clean:.1f} %", f"{clean:.1f} %")[outcome]
        with_network = f" with {worst.clean.network}" if several else ""
        groups[outcome].append(f"{name}{with_network} ({'crafted for; ' if plan(name).crafted_for(views) else ''}{figures})")
    return tuple(f"{start} {'; '.join(names)}." for start, names in zip(OUTCOMES, groups, strict=True) if names)


def _apart(before: float, after: float) -> str:
    return f"{abs(before - after):.1f} points {'less' if after <= before else 'more'}"


def _on_protection(results: RunResults, pair: VictimPair) -> list[str]:
    """Compare the first victim's accuracy on the protected classes with guessing, before and after relabelling."""
    guess, tests = results.chance, results.measured_images
    margin = error(guess, tests)
    named = f"{guess:.3g} %" + (f" among all {len(results.count('pack', 'classes'))} classes" if pair.clean.other else "")
    clean, protected = pair.clean.last.mean, pair.protected.last.mean
    if clean <= guess + margin:
        return ["The clean victim itself is hardly better than guessing, so the comparison says nothing: train longer or on more images."]
    if clean - protected < much(pair, guess):
        return ["That is no protection to speak of."]
    if protected < guess - margin:
        said = f"That is below chance ({named}): the victim is not ignorant but systematically wrong."
    elif protected <= guess + margin:
        said = f"On {tests:,} test images, that cannot be told apart from chance ({named})."
    else:
        said = f"That is {protected - guess:.1f} points above chance ({named}): the victim still learns something useful."
    return [said, _on_relabelling(results, pair)]


def _on_relabelling(results: RunResults, pair: VictimPair) -> str:
    protected, relabelled = pair.protected.last.mean, pair.protected.relabelled.mean
    outcome = f"After the best one-to-one relabelling of its predictions, the protected victim gets {relabelled:.1f} % right"
    gained = regained(pair, results.chance)
    if gained is None and relabelled - protected < much(pair, results.chance):
        return f"{outcome}: relabelling recovers next to nothing."
    if gained is None:
        return f"{outcome}, which is near chance as well: relabelling recovers nothing useful."
    share = round(gained)
    counts = results.manifests["protect"].counts
    known = MAPS.get(counts["targets"]) if METHODS[counts["method"]].targets else None
    if known:
        return f"{outcome}, far above chance: an adversary who knows of the {known} can undo it, and regains {share} % of what was lost."
    return (
        f"{outcome}, far above chance: the method aimed at no fixed map of labels, yet the mistakes follow one. An adversary who renames "
        f"the predictions with the help of a few labelled clean images regains {share} % of what was lost."
    )


def _on_networks(results: RunResults, measured: Sequence[VictimPair]) -> list[str]:
    """Say how the protection carries over to several victim networks."""
    plain = [pair for pair in measured if pair.clean.countermeasure == "none"]
    if len(plain) < 2:
        return []
    best, worst = (choose(plain, key=lambda pair: pair.protected.last.mean) for choose in (min, max))
    return [
        f"The release was crafted with {surrogates(results)}. Trained on it, {len(plain)} victim networks get from "
        f"{best.protected.last.mean:.1f} % ({best.name}) to {worst.protected.last.mean:.1f} % ({worst.name}) right."
    ]


def _on_share(results: RunResults) -> list[str]:
    """Say which part of the images was protected, if it is not all of their classes."""
    share, rule = (results.count("protect", name) for name in ("share", "chosen"))
    if not share:
        return []
    return [f"Only {100 * share:.3g} % of the images of each protected class were changed ({rule}); victims see the others as they are."]


def _on_input_size(results: RunResults) -> list[str]:
    """Say at which size victims saw the pictures, if the release was made for another."""
    seen, made = results.victim_asked.get("victim", {}).get("input_size"), results.count("protect", "input_size")
    return [f"Victims see images at {seen} pixels a side; the release was made for {made}."] if seen and made and seen != made else []


def surrogates(results: RunResults) -> str:
    """Name the networks that the protection was made with."""
    return ", ".join(results.manifests["protect"].counts["networks"]) or "no network"


def made_with(results: RunResults) -> str:
    """Say what networks had to do with the protection, as the end of a sentence that begins with `Protected`."""
    counts = results.manifests["protect"].counts
    if counts.get("members"):
        return f"with checkpoints of {surrogates(results)}"
    return f"by noise that {surrogates(results)} was trained against" if counts["networks"] else "without any network"


def _on_other_classes(results: RunResults, pair: VictimPair) -> list[str]:
    """Say what the release does to the unprotected classes."""
    if pair.clean.other is None or pair.protected.other is None:
        return []
    count = len(results.count("pack", "classes")) - len(results.count("protect", "classes"))
    clean, protected = pair.clean.other.mean, pair.protected.other.mean
    if abs(clean - protected) <= NEAR:
        outcome = "they are learned much as before"
    else:
        outcome = "they are learned worse, although none of their images was changed" if protected < clean else "they are learned better"
    classes = "class that is not protected" if count == 1 else f"{count} classes that are not protected"
    return [
        f"Of the test images of the {classes}, {pair.name} gets {clean:.1f} % right after training on the clean images and "
        f"{protected:.1f} % after training on the release, {_apart(clean, protected)}: {outcome}."
    ]


def on_missing(results: RunResults) -> tuple[str, ...]:
    """Name the victims whose training failed or was not begun in time, if there are any."""
    missing = results.missing_trials
    if not missing:
        return ()
    every, names = len(results.trials) + len(missing), shown(missing, SHOWN_MISSING)
    return (f"The victims are not finished: {len(missing)} of {every} results are missing, by failure or for lack of time: {names}.",)


def scope(measured: Sequence[VictimPair]) -> str:
    """Say what the figures speak for; they speak for nothing else."""
    every = [pair.protected for pair in measured]
    networks = ", ".join(dict.fromkeys(stats.network for stats in every))
    names = list(dict.fromkeys(stats.countermeasure for stats in every))
    countered = ", ".join(name for name in names if name != "none")
    against = " and ".join(filter(None, ["plain training" if "none" in names else "", f"training under {countered}" if countered else ""]))
    seeds = len({seed for stats in every for seed in stats.seeds})
    forms = [stored for stored in dict.fromkeys(stats.stored for stats in every) if stored != "none"]
    against += f", on images stored as {', '.join(forms)}" if forms else ""
    spread = f"over {seeds} seeds" if seeds > 1 else "over one seed, which says nothing about spread"
    return f"These figures speak for {networks} and for {against}, {spread}, and for no others."
