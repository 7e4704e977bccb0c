"""What a run has measured so far, read from its files. Any subset of the stages may be there."""

from __future__ import annotations

import json
import logging
import statistics
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.schema import RunConfig, resolved, to_tree
from pipeline.shards.tables import read_table
from pipeline.storage.layout import MANIFEST, UNFINISHED, trial_name
from pipeline.storage.records import digest
from pipeline.storage.run import Run, settings
from pipeline.storage.stage import Manifest, read_started
from sep.budget import Budget
from sep.countermeasures.registry import CLEAN_ONLY, DILUTED, clean_share

log = logging.getLogger(__name__)

MEASURED = ("pack", "surrogate", "protect", "victim")


IMPERCEPTIBILITY = ("psnr_db", "ssim", "linf_levels", "changed_percent")
Manifests = dict[str, Manifest]


@dataclass(frozen=True)
class Spread:
    """A figure over seeds: mean and sample standard deviation, in the unit of the values."""

    mean: float
    deviation: float | None  # None for a single seed, which says nothing about spread

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Of one value per seed."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        """One decimal: `10.3` or `10.3 ± 0.4`."""
        return f"{self.mean:.1f}" if self.deviation is None else f"{self.mean:.1f} ± {self.deviation:.1f}"


@dataclass(frozen=True)
class TrialStats:
    """The trials of one network, countermeasure and kind of data over all seeds; accuracies in percent.

    They are those on the clean test images of the protected classes, but for `other`.
    """

    network: str
    countermeasure: str
    data: str
    seeds: list[int]
    last: Spread
    peak: Spread
    relabelled: Spread
    other: Spread | None  # last epoch, on the test images of the classes that are not protected; None where all are
    curves: list[list[float]]  # one per seed, test accuracy after each epoch


@dataclass(frozen=True)
class VictimPair:
    """The same victim on clean and on protected images."""

    clean: TrialStats
    protected: TrialStats

    @property
    def trained(self) -> tuple[TrialStats, ...]:
        """Both, or the one training that a countermeasure which leaves no protected image makes of them."""
        return (self.clean,) if clean_share(self.clean.countermeasure) == CLEAN_ONLY else (self.clean, self.protected)

    @property
    def name(self) -> str:
        """Network, and countermeasure if there is one."""
        cell = self.clean
        return cell.network if cell.countermeasure == "none" else f"{cell.network}, {cell.countermeasure}"


@dataclass(frozen=True)
class Similarity:
    """Cosines between gradients with respect to the same images: of the checkpoints of a network, or of several networks."""

    network: str | None  # None: between the last checkpoints of several networks
    labels: list[str]  # epochs, counted from 1, or networks
    cosines: list[list[float]]

    @property
    def mean(self) -> float:
        """Mean of the cosines between different ones, which is all that is not on the diagonal."""
        return statistics.fmean(value for i, row in enumerate(self.cosines) for j, value in enumerate(row) if i != j)


def finished(run: Run) -> Manifests:
    """Manifests of the finished stages, in order; those whose inputs were redone since are left out."""
    found: Manifests = {}
    for stage in MEASURED:
        if not run.child(stage).exists(MANIFEST):
            continue
        manifest = Manifest.load(run, stage)
        stale = [name for name, digest in manifest.asked["inputs"].items() if name not in found or found[name].digest != digest]
        if stale:
            log.warning("%s is left out: it was made from an earlier %s; run it again", stage, " and ".join(stale))
        else:
            found[stage] = manifest
    return found


def configuration(config: RunConfig, found: Manifests, there: Trained | None = None) -> dict[str, Any]:
    """The tree of settings that made what is there: the stages' own records win over the present command line.

    With the trials that are `there`, also those of victims of which some failed. Settings that decide nothing are left out: the executor,
    its time, and the tracking URI, which may carry credentials.
    """
    tree = to_tree(replace(config, protect=resolved(config.protect)))
    tree = {name: value for name, value in tree.items() if name not in ("tracking_uri", "executor", "minutes")}
    if "pack" in found:
        asked = found["pack"].asked
        tree |= {"data": asked.get("pack", {}).get("data", tree["data"]), "seed": asked["seed"]}
    asked = {stage: manifest.asked for stage, manifest in found.items()} | ({"victim": there.asked} if there else {})
    for stage in asked:
        recorded = asked[stage].get(stage, {})
        tree[stage] = {name: recorded.get(name, value) for name, value in tree[stage].items()}
    return tree


def trials(run: Run, found: Manifests) -> list[dict[str, Any]]:
    """One row per trained victim, as in `victim/results.parquet`; none if that stage has not finished."""
    return read_table(run.child("victim"), "results.parquet").to_pylist() if "victim" in found else []


@dataclass(frozen=True)
class Trained:
    """The trials of a run, of which some may be missing because they failed."""

    rows: list[dict[str, Any]]
    missing: list[str]
    asked: dict[str, Any] = field(default_factory=dict)  # of the stage; nothing where there are no trials

    @property
    def unfinished(self) -> dict[str, Any]:
        """What tells these trials from those of another start while no finished stage does; nothing if none is missing."""
        return {"trials": digest(self.rows), "missing": self.missing} if self.missing else {}


def trained(run: Run, found: Manifests) -> Trained:
    """The trials there are: all of them, or where some failed, those that have finished since the stages before were made."""
    if "victim" in found:
        return Trained(trials(run, found), [], found["victim"].asked)
    if not run.exists(f"victim/{UNFINISHED}"):
        return Trained([], [])
    try:
        asked, left = read_started(run, "victim"), json.loads(run.read(f"victim/{UNFINISHED}"))
        now = {name: found[name].digest if name in found else None for name in asked["inputs"]}
        of_these = left["asked"] == digest(asked) and asked["inputs"] == now
        return Trained(left["trials"], left["missing"], asked) if of_these else Trained([], [])
    except (FileNotFoundError, ValueError, KeyError):  # begun anew, which was cut short
        return Trained([], [])


def pairs(rows: list[dict[str, Any]]) -> list[VictimPair]:
    """The victims that were trained on both kinds of data, over the seeds that both have.

    Networks without countermeasure come first; last those that have clean images besides, and those that have nothing else.
    """
    groups: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: int(row["seed"])):
        groups.setdefault((row["network"], row["countermeasure"], row["data"]), {})[row["seed"]] = row
    names = list(dict.fromkeys((row["network"], row["countermeasure"]) for row in rows))
    names.sort(key=lambda name: ((None, DILUTED, CLEAN_ONLY).index(clean_share(name[1])), name[1] != "none"))
    found = []
    for name in names:
        clean, protected = (groups.get((*name, data), {}) for data in ("clean", "protected"))
        if both := [seed for seed in clean if seed in protected]:
            of_clean, of_protected = ([own[seed] for seed in both] for own in (clean, protected))
            found.append(VictimPair(_cell((*name, "clean"), of_clean), _cell((*name, "protected"), of_protected)))
    return found


def _cell(name: tuple[str, str, str], rows: list[dict[str, Any]]) -> TrialStats:
    last, peak, relabelled = (Spread.of([row[f"{kind}_accuracy"] for row in rows]) for kind in ("last", "peak", "relabelled"))
    others = [row["other_accuracy"] for row in rows]
    other = None if None in others else Spread.of(others)
    network, countermeasure, data = name
    curves = [row["accuracy_per_epoch"] for row in rows]
    return TrialStats(network, countermeasure, data, [row["seed"] for row in rows], last, peak, relabelled, other, curves)


def confusion(run: Run, cell: TrialStats) -> list[list[int]]:
    """How often test images of each true class (rows) were given each class (columns) after the last epoch, over all seeds."""
    tables = [trial_confusion(run, cell.network, cell.data, cell.countermeasure, seed) for seed in cell.seeds]
    return [[sum(counts) for counts in zip(*rows, strict=True)] for rows in zip(*tables, strict=True)]


def trial_confusion(run: Run, network: str, data: str, countermeasure: str, seed: int) -> list[list[int]]:
    """The same of one trial."""
    counts: list[list[int]] = json.loads(run.read(f"victim/{trial_name(network, data, countermeasure, seed)}.json"))["content"]["confusion"]
    return counts


def chance(found: Manifests) -> float:
    """Percent that guessing gets right when all classes are equally frequent.

    Where only some classes are protected, too, victims choose among all of them.
    """
    return 100 / len(found["pack"].counts["classes"])


def measured_images(run: Run, found: Manifests) -> int:
    """How many test images the victims' accuracies are about: those of the protected classes, or all if nothing is protected yet."""
    if "protect" not in found:
        return int(found["pack"].counts["test"])
    table = read_table(run.child("pack"), "samples.parquet", ["split", "label"])
    labels = table.filter(pc.equal(table["split"], "test"))["label"]
    return int(pc.sum(pc.is_in(labels, pa.array(found["protect"].counts["classes"], labels.type))).as_py() or 0)


def psnr_values(run: Run) -> list[float]:
    """PSNR of every protected image that changed at all, in dB."""
    return imperceptibility(run)["psnr_db"]


def imperceptibility(run: Run) -> dict[str, list[float]]:
    """How visible the change is of every protected image that changed at all, by measure: none of one that was not taken yet then."""
    table = read_table(run.child("protect"), "samples.parquet")
    changed = table.filter(pc.greater(table["linf_levels"], 0))
    taken = [name for name in IMPERCEPTIBILITY if name in table.column_names]
    return {name: changed[name].drop_null().to_pylist() if name in taken else [] for name in IMPERCEPTIBILITY}


def checkpoints(run: Run) -> dict[str, list[dict[str, Any]]]:
    """By network the surrogate's epochs: `epoch`, `file`, `sha256`, `metrics` (loss, accuracy in percent, lr, seconds)."""
    networks: dict[str, list[dict[str, Any]]] = {}
    for entry in json.loads(run.child("surrogate").read("checkpoints.json"))["checkpoints"]:
        networks.setdefault(entry["network"], []).append(entry)
    return networks


def similarities(run: Run) -> list[Similarity]:
    """What the protect stage found about gradients: a matrix per network, then one between networks; none of a single checkpoint."""
    if not run.exists("protect/similarity.json"):
        return []
    said = json.loads(run.read("protect/similarity.json"))
    found = [Similarity(own["network"], [str(epoch + 1) for epoch in own["epochs"]], own["cosines"]) for own in said["checkpoints"]]
    between = said["networks"]
    found += [Similarity(None, between["names"], between["cosines"])] if between else []
    return [matrix for matrix in found if len(matrix.labels) > 1]


def budget(found: Manifests) -> Budget:
    """What might be spent on an image; releases of earlier versions say only the radius of the L-infinity ball."""
    counts = found["protect"].counts
    return Budget(**counts["budget"]) if "budget" in counts else Budget("linf", counts["eps_levels"])


@dataclass(frozen=True)
class Measured:
    """What is known of one run; any subset of the stages may be there."""

    uri: str
    found: Manifests
    trained: Trained
    pairs: tuple[VictimPair, ...]
    settings: dict[str, Any]  # of a point of a sweep, what was swept

    def of(self, stage: str, name: str) -> Any:
        """What a stage counted under that name; None where it has not finished, or counts no such thing."""
        return self.found[stage].counts.get(name) if stage in self.found else None

    @property
    def data_digest(self) -> str:
        """Of the packed images and labels: the same for the same data, wherever and whenever they were packed."""
        return digest(self.found["pack"].as_dict()["shards"])

    @property
    def chance(self) -> float:
        """Percent that guessing gets right."""
        return chance(self.found)

    @property
    def gradients_per_image(self) -> float:
        """What crafting an image took; 0 where there is nothing crafted, or no gradient was needed."""
        return (self.of("protect", "gradients") or 0) / max(1, self.of("protect", "protected") or 0)


def read(folder: Run) -> Measured:
    """What a run has measured so far.

    Raises:
        ValueError: a manifest or table is damaged.
        OSError: storage refused.
    """
    found = finished(folder)
    there = trained(folder, found)
    return Measured(folder.uri, found, there, tuple(pairs(there.rows)), settings(folder))
