"""What the figures of a run say, and what they do not, in plain sentences."""

from __future__ import annotations

from pipeline.results import dilution_findings
from pipeline.results.run_results import Manifests, Trained, VictimPair, chance
from pipeline.results.thresholds import ALIKE, FAR, NEAR, error, lost, much, share_lost
from pipeline.storage.records import shown
from sep.countermeasures.registry import clean_share
from sep.methods.registry import METHODS

ON_COUNTERMEASURES = (
    "The protection holds against",
    "It is weakened, but not undone, by",
    "It is undone by",
    "Nothing can be said of those under which even clean images teach the victim hardly more than guessing:",
)
SHOWN_MISSING = 20  # names of victims
MAPS = {"shift": "fixed shift of labels", "random-class": "fixed map of labels"}  # targets that one renaming of the classes undoes


def findings(found: Manifests, measured: list[VictimPair], tests: int) -> list[str]:
    """What came out, for the protected classes and, where there are any, for the others.

    Args:
        found: the finished stages.
        measured: the victims.
        tests: how many test images of protected classes they were measured on.
    """
    if not measured:
        return ["No victim is finished yet on both clean and protected images, so this run says nothing about how well they are protected."]
    guess = chance(found)
    on_diluted = dilution_findings.on_diluted(measured, guess, tests)
    # Who has clean images as well says nothing of the release alone.
    measured = [pair for pair in measured if clean_share(pair.clean.countermeasure) is None]
    if not measured:
        return ["No victim is finished yet that had nothing but the release, so this run does not say how well it protects.", *on_diluted]
    pair = measured[0]
    clean, protected = pair.clean.last.mean, pair.protected.last.mean
    classes, some = len(found["protect"].counts["classes"]), pair.clean.other is not None
    of_whom = f" of the {classes} protected classes" if some else ""
    release = "release" if some else "protected ones"
    least = guess + max(error(guess, tests), min(FAR, guess))  # of one class in ten 20 %, of one in a hundred 2 %
    said = [
        f"Trained on the clean images, {pair.name} gets {clean:.1f} % of the clean test images{of_whom} right; trained on the {release}, "
        f"{protected:.1f} %: {_apart(clean, protected)}.",
        *_on_protection(found, pair, tests),
        *_on_other_classes(found, pair),
        *_on_networks(found, measured),
    ]
    worst = _weakest(measured, guess, least)
    if worst:
        said.append(
            f"The protection is weakest against {worst.name}: {worst.protected.last.mean:.1f} % on protected images, "
            f"{worst.clean.last.mean:.1f} % on clean ones."
        )
    return said + _on_countermeasures(measured, guess, least) + on_diluted


def in_parts(said: list[str]) -> tuple[list[str], list[str]]:
    """The sentences on the whole, and those on countermeasures, one for each outcome: together too long for one paragraph."""
    countered = [sentence for sentence in said if sentence.startswith((*ON_COUNTERMEASURES, dilution_findings.START))]
    return [sentence for sentence in said if sentence not in countered], countered


def _weakest(measured: list[VictimPair], guess: float, least: float) -> VictimPair | None:
    """The victim that loses the smallest share of what it could, where that is clearly less than the first one loses."""
    first = measured[0]
    able = [pair for pair in measured[1:] if pair.clean.last.mean >= least]
    if not able or first.clean.last.mean < least or lost(first) < much(first, guess):
        return None
    worst = min(able, key=lambda pair: share_lost(pair, guess))
    return worst if share_lost(worst, guess) < share_lost(first, guess) - ALIKE else None


def _on_countermeasures(measured: list[VictimPair], guess: float, least: float) -> list[str]:
    """Against which countermeasures the protection holds and against which it does not, by the network of each that it fails most.

    Looked at are networks that it works against at all; `guess` is what guessing gets right, in percent, and who gets less than `least`
    from clean images has learned nothing that could be lost: such a network speaks for a countermeasure only where all are such.
    """
    plain = {
        pair.clean.network: pair
        for pair in measured
        if pair.clean.countermeasure == "none" and pair.clean.last.mean >= least and lost(pair) >= much(pair, guess)
    }

    def outcome(pair: VictimPair) -> int:
        """The place in `ON_COUNTERMEASURES` of the sentence that tells of it."""
        if pair.clean.last.mean < least:
            return 3
        if lost(pair) < much(pair, guess):
            return 2
        return 0 if share_lost(pair, guess) >= share_lost(plain[pair.clean.network], guess) - ALIKE else 1

    countered: dict[str, list[VictimPair]] = {}
    for pair in measured:
        if pair.clean.network in plain and pair.clean.countermeasure != "none":
            countered.setdefault(pair.clean.countermeasure, []).append(pair)
    groups: list[list[str]] = [[] for _ in ON_COUNTERMEASURES]
    for name, pairs in countered.items():
        worst = min(pairs, key=lambda pair: ((2, 1, 0, 3).index(outcome(pair)), lost(pair)))
        clean, left, place = worst.clean.last.mean, worst.protected.last.mean, outcome(worst)
        part = f"{left:.1f} % of {clean:.1f} %"
        figures = (part, part, f"{left:.1f} %, where clean images treated alike give {clean:.1f} %", f"{clean:.1f} %")[place]
        groups[place].append(f"{name} with {worst.clean.network} ({figures})" if len(plain) > 1 else f"{name} ({figures})")
    return [f"{start} {'; '.join(names)}." for start, names in zip(ON_COUNTERMEASURES, groups, strict=True) if names]


def _apart(before: float, after: float) -> str:
    return f"{abs(before - after):.1f} points {'less' if after <= before else 'more'}"


def _on_protection(found: Manifests, pair: VictimPair, tests: int) -> list[str]:
    """How the first victim's accuracy on the protected classes compares with guessing, before and after relabelling."""
    guess = chance(found)
    margin = error(guess, tests)
    named = f"{guess:.3g} %" + (f" among all {len(found['pack'].counts['classes'])} classes" if pair.clean.other else "")
    clean, protected = pair.clean.last.mean, pair.protected.last.mean
    if clean <= guess + margin:
        return ["The clean victim itself is hardly better than guessing, so the comparison says nothing: train longer or on more images."]
    if clean - protected < much(pair, guess):
        return ["That is no protection to speak of."]
    if protected < guess - margin:
        said = f"That is below chance ({named}): the victim is not ignorant but systematically wrong."
    elif protected <= guess + margin:
        said = f"With {tests:,} test images that cannot be told from chance ({named})."
    else:
        said = f"That is {protected - guess:.1f} points above chance ({named}): something useful is still learned."
    return [said, _on_relabelling(found, pair)]


def _on_relabelling(found: Manifests, pair: VictimPair) -> str:
    clean, protected, relabelled = pair.clean.last.mean, pair.protected.last.mean, pair.protected.relabelled.mean
    gain, far = relabelled - protected, much(pair, chance(found))
    outcome = f"After the best one-to-one relabelling of its predictions the protected victim gets {relabelled:.1f} % right"
    if gain < far:
        return f"{outcome}: relabelling recovers next to nothing."
    if relabelled < chance(found) + far:
        return f"{outcome}, which is near chance as well: relabelling recovers nothing useful."
    share = round(100 * gain / (clean - protected))
    counts = found["protect"].counts
    known = MAPS.get(counts["targets"]) if METHODS[counts["method"]].targets else None
    if known:
        return f"{outcome}, far above chance: somebody who knows of the {known} can undo it, and regains {share} % of what was lost."
    return (
        f"{outcome}, far above chance: no fixed map of labels was aimed at, yet the mistakes follow one, and somebody who renames the "
        f"predictions by a few labelled clean images regains {share} % of what was lost."
    )


def _on_networks(found: Manifests, measured: list[VictimPair]) -> list[str]:
    """How the protection carries over to several victim networks."""
    plain = [pair for pair in measured if pair.clean.countermeasure == "none"]
    if len(plain) < 2:
        return []
    best, worst = (choose(plain, key=lambda pair: pair.protected.last.mean) for choose in (min, max))
    return [
        f"Crafted with {surrogates(found)}, the release leaves {len(plain)} victim networks with {best.protected.last.mean:.1f} % "
        f"({best.name}) to {worst.protected.last.mean:.1f} % ({worst.name})."
    ]


def surrogates(found: Manifests) -> str:
    """The networks that the protection was made with."""
    return ", ".join(found["protect"].counts["networks"]) or "no network"


def made_with(found: Manifests) -> str:
    """What networks had to do with the protection, as the end of a sentence that begins with `Protected`."""
    counts = found["protect"].counts
    if counts.get("members"):
        return f"with checkpoints of {surrogates(found)}"
    return f"by noise that {surrogates(found)} was trained against" if counts["networks"] else "without any network"


def _on_other_classes(found: Manifests, pair: VictimPair) -> list[str]:
    """What the release does to the classes that are not protected."""
    if pair.clean.other is None or pair.protected.other is None:
        return []
    count = len(found["pack"].counts["classes"]) - len(found["protect"].counts["classes"])
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


def on_missing(there: Trained) -> list[str]:
    """Which victims nothing is said of because they failed, if there are any, by name."""
    count = len(there.missing)
    if not count:
        return []
    names = shown(there.missing, SHOWN_MISSING)
    return [f"The victims are not finished: {count} of {len(there.rows) + count} results are missing here, as trainings failed: {names}."]


def scope(measured: list[VictimPair]) -> str:
    """For what the figures speak, and for nothing else."""
    cells = [pair.protected for pair in measured]
    networks = ", ".join(dict.fromkeys(cell.network for cell in cells))
    countermeasures = ", ".join(dict.fromkeys(cell.countermeasure for cell in cells))
    seeds = sorted({seed for cell in cells for seed in cell.seeds})
    spread = "" if len(seeds) > 1 else " A single seed says nothing about spread."
    return (
        f"These figures speak for the networks ({networks}), countermeasures ({countermeasures}) and seeds "
        f"({', '.join(map(str, seeds))}) measured here, and for no others.{spread}"
    )
