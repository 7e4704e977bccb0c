"""Victims over all seeds: each network and countermeasure trained on the clean images, beside the same training on the protected ones.

A victim is a network that an adversary, an unauthorised trainer, trains on the release. One training with one seed is a trial.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sep.countermeasures.registry import plan

Row = Mapping[str, Any]  # of `victim/results.parquet`


@dataclass(frozen=True)
class Spread:
    """A figure over seeds: mean and sample standard deviation, in the unit of the values."""

    mean: float
    deviation: float | None  # None for a single seed, which says nothing about spread

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Return the spread of one value per seed."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        """Return one decimal: `10.3` or `10.3 ± 0.4`."""
        return f"{self.mean:.1f}" if self.deviation is None else f"{self.mean:.1f} ± {self.deviation:.1f}"


@dataclass(frozen=True)
class CleanShare:
    """Clean images that an adversary has besides the release, as the name of a countermeasure says.

    Attributes:
        percent: how many of the protected images.
        alone: whether the victim is trained on these alone, and on no image of the release.
        control: the countermeasure under which they are trained on alone.
    """

    percent: int
    alone: bool
    control: str


def share_of(countermeasure: str) -> CleanShare | None:
    """Return the clean share that a countermeasure names; None where the adversary has nothing but the release."""
    named = plan(countermeasure)
    return CleanShare(named.clean_percent, named.clean_only, named.control) if named.clean_percent else None


@dataclass(frozen=True)
class TrialStats:
    """The trials of one network, countermeasure and kind of data over all seeds; accuracies in percent.

    Accuracies are measured on the clean test images of the protected classes, except `other`.
    """

    network: str
    countermeasure: str
    data: str
    stored: str  # form of the training pictures, before any countermeasure
    seeds: list[int]
    last: Spread
    peak: Spread
    relabelled: Spread
    other: Spread | None  # last epoch, on the test images of the unprotected classes; None where every class is protected
    curves: list[list[float]]  # one per seed, test accuracy after each epoch

    @classmethod
    def of(cls, name: tuple[str, str, str], rows: list[Row]) -> TrialStats:
        """Return what the rows of one network, countermeasure and kind of data come to."""
        last, peak, relabelled = (Spread.of([row[f"{kind}_accuracy"] for row in rows]) for kind in ("last", "peak", "relabelled"))
        others = [row["other_accuracy"] for row in rows]
        other = None if None in others else Spread.of(others)
        stored = rows[0].get("stored", "none")
        return cls(*name, stored, [row["seed"] for row in rows], last, peak, relabelled, other, [row["accuracy_per_epoch"] for row in rows])


@dataclass(frozen=True)
class VictimPair:
    """The same victim on clean and on protected images; `share` is what it has of the protected images in their clean form."""

    clean: TrialStats
    protected: TrialStats
    share: CleanShare | None

    @property
    def trained(self) -> tuple[TrialStats, ...]:
        """Both, or the only training where the countermeasure leaves no protected image."""
        return (self.clean,) if self.share and self.share.alone else (self.clean, self.protected)

    @property
    def name(self) -> str:
        """Network, form of the pictures unless it is that of the release, and countermeasure if there is one."""
        own = self.clean
        network = own.network if own.stored == "none" else f"{own.network} on {own.stored}"
        return network if own.countermeasure == "none" else f"{network}, {own.countermeasure}"


def pairs(rows: Iterable[Row]) -> tuple[VictimPair, ...]:
    """Return the victims that were trained on both kinds of data, over the seeds that both have.

    Victims without a countermeasure come first. Victims with some clean images besides the release come after those without, and victims
    with nothing but clean images last.
    """
    groups: dict[tuple[str, str, str], dict[int, Row]] = {}
    for row in rows:
        groups.setdefault((row["network"], row["countermeasure"], row["data"]), {})[row["seed"]] = row
    found = []
    for network, countermeasure in dict.fromkeys(name[:2] for name in groups):
        clean, protected = ((network, countermeasure, data) for data in ("clean", "protected"))
        if both := sorted(groups.get(clean, {}).keys() & groups.get(protected, {}).keys()):
            stats = {name: TrialStats.of(name, [groups[name][seed] for seed in both]) for name in (clean, protected)}
            found.append(VictimPair(stats[clean], stats[protected], share_of(countermeasure)))
    return tuple(sorted(found, key=lambda pair: (pair.share is not None, len(pair.trained) == 1, pair.clean.countermeasure != "none")))
