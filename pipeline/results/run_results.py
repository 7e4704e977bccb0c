"""The results of a run, read from its files once and handed to the summary, the report, the tracker and comparisons.

Any subset of the stages may have finished. Manifests and trials are read at once. A table is streamed when it is first asked for.
While a run goes on, only the records of the stage that has just ended are read again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.marks import Mark, marked, without
from pipeline.config.schema import ProtectConfig, RunConfig, VictimConfig, to_tree
from pipeline.results.samples import ProtectedSamples, ShownImages
from pipeline.results.similarity import Similarity, read_similarities
from pipeline.results.stage_records import Manifests, current, read_manifests, read_trials
from pipeline.results.victims import Row, TrialStats, VictimPair, pairs
from pipeline.shards.tables import stream_table
from pipeline.storage.layout import CHECKPOINTS, MANIFEST, QUARANTINE, RECORDS, SAMPLES, trial_name, trial_record
from pipeline.storage.records import digest, release_of
from pipeline.storage.run import Run, settings
from pipeline.storage.stage import Manifest
from sep.budget import Budget
from sep.methods.registry import METHODS
from sep.views.registry import PLAIN

NAMED_REFUSALS = 50  # files that a page lists by name
READ_FROM = {  # stages, and the properties that say what lies in their files
    "pack": ("refusals",),
    "surrogate": ("checkpoints",),
    "protect": ("samples", "shown_images", "similarities", "measured_images"),
    "victim": ("pairs", "first_confusions"),
}


@dataclass(frozen=True)
class Refusals:
    """The files that packing refused: how many for each reason, most frequent first, and the first of them as `(source, reason)`."""

    reasons: tuple[tuple[str, int], ...] = ()
    first: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class RunResults:
    """The results of one run, or of one point of a sweep.

    Attributes:
        folder: of the run.
        manifests: of the finished stages, without the stages whose inputs were made anew since.
        trials: a row for each trained victim, as in `victim/results.parquet`; while some trainings have failed, the others.
        missing_trials: names of the victims whose training failed.
        victim_asked: what the victim stage was asked for; empty where there are no trials.
        swept: of a point of a sweep, the swept fields with its values.
        left_out: manifests of the stages whose inputs were made anew since.
    """

    folder: Run
    manifests: Manifests = field(default_factory=dict)
    trials: Sequence[Row] = ()
    missing_trials: Sequence[str] = ()
    victim_asked: Mapping[str, Any] = field(default_factory=dict)
    swept: Mapping[str, Any] = field(default_factory=dict)
    left_out: Manifests = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Run) -> RunResults:
        """Read what a run has measured so far.

        Raises:
            ValueError: a manifest or table is damaged.
            OSError: storage refused.
        """
        return cls(folder, swept=settings(folder))._with(read_manifests(folder), again=True)

    def after(self, stage: str) -> RunResults:
        """Return the results after a stage has ended. Its records are read again, and no others.

        Raises:
            ValueError: a manifest or table is damaged.
            OSError: storage refused.
        """
        return self._with({**self._others(stage), **read_manifests(self.folder, [stage])}, again=stage == "victim")

    def before(self, stage: str) -> RunResults:
        """Return the results while a stage is being made."""
        return self._with(self._others(stage), again=stage == "victim")

    def missing_shards(self, stages: Collection[str]) -> list[str]:
        """Return the shards that were left out by these stages, such as `protect/train-000000.tar`."""
        return [f"{stage}/{shard}" for stage in self.manifests if stage in stages for shard in self.manifests[stage].missing]

    def _others(self, stage: str) -> dict[str, Manifest]:
        return {name: manifest for name, manifest in {**self.manifests, **self.left_out}.items() if name != stage}

    def _with(self, written: Manifests, *, again: bool) -> RunResults:
        """Return the results with these manifests, and with whatever was read of stages that are as they were.

        Args:
            written: manifests of all finished stages.
            again: whether the trials are read again in any case.
        """
        manifests = current(written)
        again = again or manifests != self.manifests
        trials = read_trials(self.folder, manifests) if again else (self.trials, self.missing_trials, self.victim_asked)
        left_out = {stage: manifest for stage, manifest in written.items() if stage not in manifests}
        results = RunResults(self.folder, manifests, *trials, self.swept, left_out)
        same = [stage for stage in manifests if manifests[stage] == self.manifests.get(stage)]
        known = [name for stage in same for name in READ_FROM[stage]] + ([] if again else ["found"])
        results.__dict__.update({name: self.__dict__[name] for name in known if name in self.__dict__})
        return results

    def count(self, stage: str, name: str) -> Any:
        """Return what a stage counted under that name; None where it has not finished, or counts no such thing."""
        return self.manifests[stage].counts.get(name) if stage in self.manifests else None

    def digest_of(self, stage: str) -> str | None:
        """Return the digest of what a stage has made, which may be a part of the trials; None where it has made nothing."""
        if stage == "report":
            return self._report_digest
        if stage in RECORDS:
            return digest(self.found[stage]) if stage in self.found else None
        if stage in self.manifests:
            return self.manifests[stage].digest
        return digest(self.unfinished) if stage == "victim" and self.unfinished else None

    @cached_property
    def _report_digest(self) -> str | None:
        return Manifest.load(self.folder, "report").digest if self.folder.child("report").exists(MANIFEST) else None

    @cached_property
    def found(self) -> Mapping[str, Mapping[str, Any]]:
        """The findings of other commands in this very release, by the commands' names: their records, as they wrote them."""
        commands = RECORDS if "protect" in self.manifests else ()
        return {command: found for command in commands if (found := self._found(command)) is not None}

    def _found(self, command: str) -> Mapping[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self.folder.read(RECORDS[command]))
            return found if release_of(found) == self.digest_of("protect") else None
        except (FileNotFoundError, ValueError, KeyError):
            return None

    @property
    def unfinished(self) -> dict[str, Any]:
        """The mark that distinguishes these trials from another start's while trainings are missing; empty once none is."""
        return {"trials": digest(self.trials), "missing": self.missing_trials} if self.missing_trials else {}

    @property
    def data_digest(self) -> str:
        """Digest of the packed images and labels: the same for the same data, wherever and whenever it was packed."""
        return digest(self.manifests["pack"].as_dict()["shards"])

    @property
    def chance(self) -> float:
        """Percent that guessing gets right if all classes are equally frequent; a victim chooses among unprotected classes too."""
        return 100 / len(self.manifests["pack"].counts["classes"])

    @property
    def budget(self) -> Budget:
        """The most that an image might be changed; releases of earlier versions give only the radius of the L-infinity ball."""
        counts = self.manifests["protect"].counts
        return Budget(**counts["budget"]) if "budget" in counts else Budget("linf", counts["eps_levels"])

    @property
    def gradients_per_image(self) -> float:
        """Gradients that crafting an image took; 0 where nothing was crafted, or no gradient was needed."""
        return (self.count("protect", "gradients") or 0) / max(1, self.count("protect", "protected") or 0)

    @property
    def crafting_seconds(self) -> float | None:
        """Seconds that crafting takes at the rate of the last start, which may have crafted only a part; None if it crafted nothing.

        They include what a method does before the first shard: training against its noise, or searching for pixels.
        """
        timing = self.manifests["protect"].timing if "protect" in self.manifests else {}
        rate = timing.get("images_per_second", 0)
        return float(timing.get("preparation_seconds", 0) + self.manifests["protect"].counts["protected"] / rate) if rate else None

    @cached_property
    def pairs(self) -> tuple[VictimPair, ...]:
        """The victims that were trained on both kinds of data."""
        return pairs(self.trials)

    @property
    def of_release(self) -> tuple[VictimPair, ...]:
        """The victims that were trained on nothing but the release; one with clean images besides says nothing of it alone."""
        return tuple(pair for pair in self.pairs if pair.share is None)

    @cached_property
    def measured_images(self) -> int:
        """Number of test images that the victims' accuracies stand for: those of the protected classes, or all before protection."""
        classes = self.count("protect", "classes")
        if classes is None or len(classes) == len(self.manifests["pack"].counts["classes"]):
            return int(self.manifests["pack"].counts["test"])
        batches = stream_table(self.folder.child("pack"), SAMPLES, ["split", "label"])
        tests = (batch.filter(pc.equal(batch["split"], "test"))["label"] for batch in batches)
        return sum(pc.sum(pc.is_in(labels, pa.array(classes, labels.type))).as_py() or 0 for labels in tests)

    @cached_property
    def refusals(self) -> Refusals:
        """The files that packing refused."""
        if "pack" not in self.manifests:
            return Refusals()
        reasons: Counter[str] = Counter()
        first: list[tuple[str, str]] = []
        for batch in stream_table(self.folder.child("pack"), QUARANTINE, ["source", "reason"]):
            reasons.update(batch["reason"].to_pylist())
            named = batch.slice(0, NAMED_REFUSALS - len(first)).to_pylist()
            first += [(row["source"], row["reason"]) for row in named]
        return Refusals(tuple(reasons.most_common()), tuple(first))

    @cached_property
    def samples(self) -> ProtectedSamples:
        """The content of the table of protected images."""
        return ProtectedSamples.read(self.folder.child("protect"))

    @cached_property
    def shown_images(self) -> ShownImages:
        """The protected images that are shown, and the spectrum of the changes."""
        return ShownImages.read(self.folder, self.manifests, self.samples)

    @cached_property
    def checkpoints(self) -> dict[str, list[dict[str, Any]]]:
        """By network, the surrogate's epochs: `epoch`, `file`, `sha256`, `metrics` (loss, accuracy in percent, lr, two times)."""
        networks: dict[str, list[dict[str, Any]]] = {}
        for entry in json.loads(self.folder.child("surrogate").read(CHECKPOINTS))["checkpoints"]:
            networks.setdefault(entry["network"], []).append(entry)
        return networks

    @cached_property
    def similarities(self) -> tuple[Similarity, ...]:
        """The similarity of checkpoints' gradients; empty before protection, and where there is a single checkpoint."""
        return read_similarities(self.folder.child("protect")) if "protect" in self.manifests else ()

    @cached_property
    def first_confusions(self) -> tuple[list[list[int]], list[list[int]]]:
        """The confusion of the first victim of the release, trained on the originals and on the release."""
        first = self.of_release[0]
        return self.confusion(first.clean), self.confusion(first.protected)

    def confusion(self, stats: TrialStats) -> list[list[int]]:
        """Return how often test images of each class (rows) were taken for each class (columns), over all seeds: `(K, K)`."""
        tables = [self.trial_confusion(stats.network, stats.data, stats.countermeasure, seed) for seed in stats.seeds]
        return [[sum(counts) for counts in zip(*rows, strict=True)] for rows in zip(*tables, strict=True)]

    def trial_confusion(self, network: str, data: str, countermeasure: str, seed: int) -> list[list[int]]:
        """Return the same of one trial."""
        counts: list[list[int]] = self.trial_record(network, data, countermeasure, seed)["confusion"]
        return counts

    def trial_record(self, network: str, data: str, countermeasure: str, seed: int) -> dict[str, Any]:
        """Return what a trial recorded. Read at each call: the confusion of many trials and classes would not fit in memory."""
        name = trial_name(network, data, countermeasure, seed)
        content: dict[str, Any] = json.loads(self.folder.child("victim").read(trial_record(name)))["content"]
        return content

    def configuration(self, config: RunConfig) -> dict[str, Any]:
        """Return the tree of settings that made what was measured: the stages' own records win over the present command line.

        Settings that decide only how fast, or what one start does, are left out.
        """
        tree = without(to_tree(replace(config, protect=config.protect.resolved())), marked(RunConfig, Mark.SPEED, Mark.START))
        asked: dict[str, Mapping[str, Any]] = {stage: manifest.asked for stage, manifest in self.manifests.items()}
        if "pack" in asked:
            tree |= {"data": asked["pack"].get("pack", {}).get("data", tree["data"]), "seed": asked["pack"]["seed"]}
        for stage in ("surrogate", "protect"):
            if stage in asked:
                recorded = asked[stage].get(stage, {})
                tree["views"] = recorded.get("views", list(PLAIN))
                if "method" not in recorded or METHODS[recorded["method"]].views:  # others know no input size, but the victims do
                    tree["input_size"] = recorded.get("input_size")
        for stage, recorded in (asked | ({"victim": self.victim_asked} if self.victim_asked else {})).items():
            tree[stage] = {name: recorded.get(stage, {}).get(name, value) for name, value in tree[stage].items()}
        if "surrogate" in asked:
            tree["surrogate"]["initial"] = asked["surrogate"].get("surrogate", {}).get("initial")
        if "protect" in asked:
            of_share = {"share": ProtectConfig.share, "chosen": ProtectConfig.chosen} | asked["protect"].get("protect", {})
            tree["protect"] |= {name: of_share[name] for name in ("share", "chosen")}
        if self.victim_asked:
            own = {"stored": VictimConfig.stored, "input_size": None} | self.victim_asked.get("victim", {})
            tree["victim"]["input_size"] = None if own["input_size"] == tree["input_size"] else own["input_size"]
            tree["victim"]["stored"] = own["stored"]
        return tree
