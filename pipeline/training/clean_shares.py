"""A diluted release: the adversary has some of its images in their clean form, which are read from the clean shards instead.

The protected form of those images is left out, so that a diluted training set is no larger than another (as Huang et al. 2021 mix clean
and unlearnable images). Each clean image replaces its own protected form, because a packed data set need not have other images
of its class. The control trains on the clean images alone, repeated to a training set of the same size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, product

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.class_selection import protected_classes
from pipeline.config.schema import RunConfig
from pipeline.config.seeds import derive
from pipeline.shards.shard import Sample, read_shard
from pipeline.shards.tables import stream_table
from pipeline.storage.folder import Folder
from pipeline.storage.layout import SAMPLES
from pipeline.storage.stage import Shard
from sep.countermeasures.registry import plan


def choose(labels: Mapping[str, int], percent: float, seed: int) -> frozenset[str]:
    """Choose a percentage of the keys, rounded, evenly over the classes; a larger percentage adds to the keys of a smaller one.

    Args:
        labels: by key.
        percent: 0 to 100.
        seed: decides the order in which the keys of a class are taken.
    """
    ranked = []
    for keys in of_classes(labels).values():
        keys.sort(key=lambda key: derive(seed, key))
        # Order keys by the share of their class that is taken up to them, so that classes of all sizes fill alike.
        ranked += [((place + 0.5) / len(keys), derive(seed, key), key) for place, key in enumerate(keys)]
    return frozenset(key for *_, key in sorted(ranked)[: round(percent / 100 * len(labels))])


def clean_keys(labels: Mapping[str, int], percent: int, run_seed: int, victim_seed: int) -> frozenset[str]:
    """Choose the keys of the images that a victim has in clean form. They depend on its seed, not on network or countermeasure."""
    return choose(labels, percent, derive(run_seed, "dilution", victim_seed))


def of_classes(labels: Mapping[str, int]) -> dict[int, list[str]]:
    """Return the keys of each class, from labels by key."""
    of_class: dict[int, list[str]] = {}
    for key, label in labels.items():
        of_class.setdefault(label, []).append(key)
    return of_class


def repeats(labels: Mapping[str, int], chosen: Collection[str]) -> dict[str, str]:
    """Map each key to a chosen one of its class: to itself if it is chosen, else to each chosen one in turn.

    Args:
        labels: by key.
        chosen: some of the keys.

    Raises:
        ValueError: no key of some class is chosen.
    """
    instead = {key: key for key in chosen}
    for label, keys in of_classes(labels).items():
        kept = sorted(key for key in keys if key in instead)
        if not kept:
            raise ValueError(f"of the {len(keys)} images of class {label} none is among the clean ones: take a larger percentage")
        instead |= zip(sorted(set(keys).difference(kept)), cycle(kept), strict=False)
    return instead


def protected_labels(pack: Folder, shards: Sequence[Shard], classes: Collection[int]) -> dict[str, int]:
    """Return the labels of the images of protected classes in some shards, by key.

    Args:
        pack: the folder of the clean shards.
        shards: the training shards.
        classes: labels of the protected classes.
    """
    names, known = pa.array([shard.name for shard in shards], pa.string()), pa.array([*classes], pa.int64())
    labels: dict[str, int] = {}
    for batch in stream_table(pack, SAMPLES, ["key", "label", "shard"]):
        found = batch.filter(pc.and_(pc.is_in(batch["shard"], names), pc.is_in(batch["label"], known)))
        labels.update(zip(found["key"].to_pylist(), found["label"].to_pylist(), strict=True))
    return labels


@dataclass(frozen=True)
class Diluted:
    """A reader of protected shards that gives some samples in their clean form.

    Attributes:
        pack: the folder of the clean shards, which have the names and keys of the protected ones.
        shards: the clean shards, as its manifest records them.
        keys: of the clean samples.
    """

    pack: Folder
    shards: Sequence[Shard]
    keys: frozenset[str]

    def __call__(self, folder: Folder, shard: Shard) -> list[Sample]:
        """Return the samples of a protected shard.

        Raises:
            CorruptShard: a shard is not as recorded.
        """
        samples = read_shard(folder, shard)
        if not any(sample.key in self.keys for sample in samples):
            return samples
        (twin,) = (clean for clean in self.shards if clean.name == shard.name)
        clean = {sample.key: sample for sample in read_shard(self.pack, twin)}
        return [clean[sample.key] if sample.key in self.keys else sample for sample in samples]


@dataclass(frozen=True)
class Repeated:
    """A reader of clean shards that puts some samples in the place of the others, so that each class keeps its size.

    Attributes:
        instead: the replacement of a sample, by the key of that sample; a sample without an entry stays. Replacements are held in
            memory, as PNGs, because each may be needed in any shard.
    """

    instead: Mapping[str, Sample]

    @classmethod
    def of(cls, pack: Folder, shards: Sequence[Shard], labels: Mapping[str, int], chosen: Collection[str]) -> Repeated:
        """Return the reader that puts the chosen samples in the place of all of their class.

        Args:
            pack: the folder of the clean shards.
            shards: the clean shards, as its manifest records them.
            labels: of all samples to replace, by key.
            chosen: some of their keys.

        Raises:
            CorruptShard: a shard is not as recorded.
            ValueError: no sample of some class is chosen.
        """
        instead = repeats(labels, chosen)
        samples = {sample.key: sample for shard in shards for sample in read_shard(pack, shard) if sample.key in chosen}
        return cls({key: samples[other] for key, other in instead.items()})

    def __call__(self, folder: Folder, shard: Shard) -> list[Sample]:
        """Return the samples of a clean shard.

        Raises:
            CorruptShard: the shard is not as recorded.
        """
        return [self.instead.get(sample.key, sample) for sample in read_shard(folder, shard)]


def check_clean_shares(config: RunConfig, classes: Sequence[str], labels: Callable[[Collection[int]], Mapping[str, int]]) -> None:
    """Check, before anything is crafted, that every clean-only share has images of each class.

    Args:
        config: of the run.
        classes: names of all classes, in label order.
        labels: gives those of the training images of some classes, by key; asked only where there is such a share.

    Raises:
        ValueError: a share lacks a class.
    """
    plans = {name: plan(name) for name in config.victim.countermeasures if "victim" in config.stages}
    percents = {name: each.clean_percent for name, each in plans.items() if each.clean_only}
    if not percents:
        return
    of_protected = labels(protected_classes(config, classes))
    for (name, percent), seed in product(percents.items(), config.victim.seeds):
        try:
            repeats(of_protected, clean_keys(of_protected, percent, config.seed, seed))
        except ValueError as error:
            raise ValueError(f"victim.countermeasures: {name}: {error}") from error
