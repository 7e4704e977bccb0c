"""The audit of a release: what each adversary that was tried does to it, what that takes, and one line on the whole."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from pipeline.results.outcomes import Outcome, outcome, regained
from pipeline.results.run_results import RunResults
from pipeline.results.thresholds import interval, lost, much
from pipeline.results.verdict import uncertain
from pipeline.results.victims import Spread, TrialStats, VictimPair
from pipeline.storage.layout import RELEASE
from pipeline.storage.records import shown
from sep.countermeasures.registry import plan

Figure = Literal["last epoch", "relabelled"]
WORDS = {Outcome.HOLDS: "holds", Outcome.WEAKENED: "weakened", Outcome.UNDONE: "undone", Outcome.UNKNOWN: "not measured"}
UNITS = {"gpus": "GPU-hours", "cpus": "CPU-hours"}
SHOWN = 8  # names in one list


@dataclass(frozen=True)
class Cost:
    """The cost of a training, as the mean over seeds.

    Attributes:
        hours: of GPUs or CPU cores.
        unit: of the hours; `hours` where nobody recorded what the training ran on.
        times: the same in plain trainings of the network on the release; None before one is done.
    """

    hours: float
    unit: str
    times: float | None

    def __str__(self) -> str:
        """Return both: `5.10 times a plain training (0.3 CPU-hours)`."""
        spent = f"{self.hours:.2g} {self.unit}"
        return spent if self.times is None else f"{self.times:.2f} times a plain training ({spent})"


@dataclass(frozen=True)
class Tried:
    """An adversary that was tried, by the network with which it gets the most from the release.

    Attributes:
        name: its countermeasure.
        pair: that network, trained on clean and on protected images.
        outcome: by the figure that speaks.
        figure: the accuracy that speaks on the release: relabelled where renaming the predictions wins back much.
        clean_pictures: how many originals of released images it takes.
        knowledge: what it takes besides, in words; empty for nothing.
        crafted_for: whether the release was made through a view that does the same.
        results: of the run.
    """

    name: str
    pair: VictimPair
    outcome: Outcome
    figure: Figure
    clean_pictures: int
    knowledge: str
    crafted_for: bool
    results: RunResults = field(repr=False)

    @cached_property
    def cost(self) -> Cost:
        """The cost of a training on the release, read from the records of the trials."""
        plain = (pair.protected for pair in self.results.of_release if pair.clean.countermeasure == "none")
        like = next((stats for stats in plain if stats.network == self.pair.clean.network), None)
        return _cost(_spent(self.results, self.pair.protected), _spent(self.results, like) if like else None)

    @property
    def speaks(self) -> Spread:
        """The figure that speaks, in percent."""
        return self.pair.protected.relabelled if self.figure == "relabelled" else self.pair.protected.last

    @property
    def title(self) -> str:
        """The name in a sentence."""
        return titled(self.name) + (" with the predictions renamed" if self.figure == "relabelled" else "")


@dataclass(frozen=True)
class Audit:
    """An audit of a release.

    Attributes:
        results: of the run.
        tried: the adversaries with a figure, in the order in which they were tried.
        left: adversaries that were asked for and not tried, or not with every network and seed, each with the reason.
    """

    results: RunResults
    tried: tuple[Tried, ...]
    left: Mapping[str, str]

    @cached_property
    def worst(self) -> Tried | None:
        """The adversary that decides: of those without clean images, the one that gets the most from the release."""
        able = [each for each in self.tried if not each.clean_pictures and each.outcome is not Outcome.UNKNOWN]
        return max(able, key=lambda each: each.speaks.mean, default=None)

    @property
    def label(self) -> str:
        """The verdict in a word: `holds`, `weakened`, `undone` or `not measured`."""
        return WORDS[self.worst.outcome if self.worst else Outcome.UNKNOWN]

    def named(self, outcome: Outcome, *, clean_pictures: bool = False) -> list[str]:
        """Return what came out so, of the adversaries with or without clean images."""
        return [each.title for each in self.tried if each.outcome is outcome and bool(each.clean_pictures) is clean_pictures]

    @property
    def line(self) -> str:
        """The verdict in one line."""
        return " ".join(self.sentences)

    @property
    def sentences(self) -> tuple[str, ...]:
        """The verdict by the adversary that decides, then how many others were tried, and what was not."""
        untried = (f"Not tried, or not to the end: {shown([titled(name) for name in self.left], SHOWN)}.",) if self.left else ()
        if self.worst is None:
            return "Not measured: no adversary is finished that learns more than guessing from the originals.", *untried
        counts = [len(self.named(each)) for each in (Outcome.UNDONE, Outcome.WEAKENED, Outcome.HOLDS)]
        tally = "Of {} tried: undone by {}, weakened by {}, holds against {}.".format(sum(counts), *counts)
        doubt = uncertain(self.worst.speaks.mean, self.results.measured_images)
        return self._decided(self.worst, sum(counts)), *doubt, *self._cheaper(self.worst), tally, *self._with_clean_pictures(), *untried

    def _decided(self, worst: Tried, tried: int) -> str:
        how = f"{worst.figure}, n = {len(worst.pair.protected.seeds)}"
        takes = ", ".join([str(worst.cost), "no clean images", *([worst.knowledge] if worst.knowledge else [])])
        figures = f"{worst.speaks} % from the release, {worst.pair.clean.last} % from the originals treated alike ({how})"
        if worst.outcome is Outcome.HOLDS:
            against = f"all {tried} adversaries that were tried" if tried > 1 else "the only adversary that was tried"
            return f"Holds against {against}; the strongest, {worst.title}, gets {figures}, for {takes}."
        said = f"{WORDS[worst.outcome].capitalize()} by"
        if worst.name == "none":
            said = "Does not hold against" if worst.outcome is Outcome.UNDONE else "Holds in part against"
        return f"{said} {worst.title}: {figures}, for {takes}."

    def _cheaper(self, worst: Tried) -> tuple[str, ...]:
        """Name the cheapest adversary that undoes the protection, if it is another one."""
        undone = [each for each in self.tried if each.outcome is Outcome.UNDONE and not each.clean_pictures]
        cheapest = min(undone, key=lambda each: each.cost.hours, default=worst)
        if cheapest is worst:
            return ()
        return (f"Undone for least by {cheapest.title}: {cheapest.speaks} of {cheapest.pair.clean.last} %, {cheapest.cost}.",)

    def _with_clean_pictures(self) -> tuple[str, ...]:
        undone = self.named(Outcome.UNDONE, clean_pictures=True)
        return (f"With clean images besides: undone by {shown(undone, SHOWN)}.",) if undone else ()


def titled(name: str) -> str:
    """Return a countermeasure as a sentence names it."""
    return "plain training" if name == "none" else name


def audit(results: RunResults, wanted: Sequence[str], unsuited: Mapping[str, str]) -> Audit:
    """Judge what a run has measured: each victim by what it learns from the release, however little the plain training learns.

    Args:
        results: of a run with a release.
        wanted: the countermeasures to try.
        unsuited: those of them that the run cannot try, with the reason.
    """
    asked = results.victim_asked.get("victim", {"networks": (), "seeds": ()})
    every = len(asked["networks"]) * len(asked["seeds"])
    done = {name: sum(len(pair.clean.seeds) for pair in results.pairs if pair.clean.countermeasure == name) for name in wanted}
    left = {name: f"{done[name]} of {every or 'no'} trainings done" for name in wanted if not every or done[name] < every}
    return Audit(results, _tried(results), {**left, **unsuited})


def _by(figure: Figure, pair: VictimPair) -> VictimPair:
    """Return a victim whose last accuracy on the release is the figure that speaks."""
    return replace(pair, protected=replace(pair.protected, last=pair.protected.relabelled)) if figure == "relabelled" else pair


def _tried(results: RunResults) -> tuple[Tried, ...]:
    pairs, guess = results.of_release, results.chance
    tests, views = results.measured_images, results.count("protect", "views") or ()
    renaming = "the method's map of classes" if results.count("protect", "targets") == "shift" else "a few labelled images"
    spoken: dict[str, list[tuple[Figure, VictimPair, VictimPair]]] = {}
    for pair in pairs:
        renamed = lost(pair) >= much(pair, guess) and regained(pair, guess) is not None
        figure: Figure = "relabelled" if renamed else "last epoch"
        spoken.setdefault(pair.clean.countermeasure, []).append((figure, pair, _by(figure, pair)))
    tried = []
    for name, found in spoken.items():
        judged = [(outcome(by, {}, guess, tests), figure, pair, by) for figure, pair, by in found]
        worst, figure, pair, _ = max(judged, key=lambda each: (each[0] is not Outcome.UNKNOWN, each[3].protected.last.mean))
        named = plan(name)
        clean = named.clean_pictures(results.count("protect", "protected") or 0)
        has = filter(None, (named.knowledge, renaming if figure == "relabelled" else ""))
        tried.append(Tried(name, pair, worst, figure, clean, " and ".join(has), named.crafted_for(views), results))
    return tuple(tried)


def _spent(results: RunResults, stats: TrialStats) -> tuple[float, str]:
    """Return the hours of a training, as the mean over seeds, and their unit; a training that another one stands for does not count."""
    records = [results.trial_record(stats.network, stats.data, stats.countermeasure, seed) for seed in stats.seeds]
    held = [(record.get("seconds", 0.0), record.get("resources", {})) for record in records]
    units = {unit for _, resources in held for unit in resources}
    hours = [seconds * sum(resources.values() if len(units) == 1 else [1]) / 3600 for seconds, resources in held if seconds]
    return statistics.fmean(hours or [0.0]), UNITS[units.pop()] if len(units) == 1 else "hours"


def _cost(own: tuple[float, str], plain: tuple[float, str] | None) -> Cost:
    comparable = plain and plain[0] and plain[1] == own[1]
    return Cost(*own, own[0] / plain[0] if plain and comparable else None)


def card(found: Audit) -> dict[str, Any]:
    """Return the audit as JSON types: the same names for every release, so that two of them compare line by line."""
    results, protect = found.results, found.results.manifests["protect"]
    return {
        "run": results.folder.path.rstrip("/").rpartition("/")[2],
        "data_sha256": results.data_digest,
        RELEASE: protect.digest,
        "method": results.count("protect", "method"),
        "budget": str(results.budget),
        "views": results.count("protect", "views") or ["none"],
        "verdict": found.label,
        "line": found.line,
        "decided_by": found.worst and found.worst.name,
        "decided_accuracy": found.worst and round(found.worst.speaks.mean, 2),
        "chance_accuracy": results.chance,
        "test_images": results.measured_images,
        "victim": dict(results.victim_asked.get("victim", {})),
        "versions": protect.versions,
        "adversaries": {each.name: _entry(each, results.measured_images) for each in found.tried},
        "not_tried": dict(found.left),
    }


def _entry(tried: Tried, tests: int) -> dict[str, Any]:
    pair = tried.pair
    accuracies = {"originals": pair.clean.last, "last": pair.protected.last, "relabelled": pair.protected.relabelled}
    return {
        "outcome": WORDS[tried.outcome],
        "network": pair.clean.network,
        "seeds": pair.protected.seeds,
        "speaks": tried.figure,
        **{f"{name}_accuracy": _rounded(spread) for name, spread in accuracies.items()},
        "interval": [round(end, 2) for end in interval(tried.speaks.mean, tests)],
        "cost": asdict(tried.cost),
        "clean_pictures": tried.clean_pictures,
        "knowledge": tried.knowledge or None,
        "crafted_for": tried.crafted_for,
    }


def _rounded(spread: Spread) -> dict[str, float | None]:
    return {"mean": round(spread.mean, 2), "std": None if spread.deviation is None else round(spread.deviation, 2)}
