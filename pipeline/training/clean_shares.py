"""A release of which some images are to be had from elsewhere as they were before: read from the clean shards instead.

Of those images the protected form is left out, so that a diluted training set is no larger than another (as Huang et al. 2021 mix clean
and unlearnable images). They are the same images and not others of their class, which a packed data set need not have. What they teach
without the protected ones is measured beside it, on as many images: theirs, repeated.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, product

from pipeline.config.class_selection import protected_classes
from pipeline.config.schema import RunConfig
from pipeline.config.seeds import derive
from pipeline.shards.shard import Sample, read_shard
from pipeline.shards.tables import read_table
from pipeline.storage.folder import Folder
from pipeline.storage.layout import SAMPLES
from pipeline.storage.run import Run
from pipeline.storage.stage import Manifest, Shard
from sep.countermeasures.registry import plan


def choose(labels: dict[str, int], percent: int, seed: int) -> frozenset[str]:
    """That percentage of the keys, rounded, evenly over the classes; those of a smaller percentage are among those of a larger one.

    Args:
        labels: by key.
        percent: 0 to 100.
        seed: gives the order in which the keys of a class are taken.
    """
    ranked = []
    for keys in _of_classes(labels).values():
        keys.sort(key=lambda key: derive(seed, key))
        # By the share of its class that would be taken with it, so that classes fill alike whatever their sizes.
        ranked += [((place + 0.5) / len(keys), derive(seed, key), key) for place, key in enumerate(keys)]
    return frozenset(key for *_, key in sorted(ranked)[: round(percent / 100 * len(labels))])


def clean_keys(labels: dict[str, int], percent: int, run_seed: int, victim_seed: int) -> frozenset[str]:
    """The keys whose clean form a victim has: others for each of its seeds, the same for every network and countermeasure."""
    return choose(labels, percent, derive(run_seed, "dilution", victim_seed))


def _of_classes(labels: Mapping[str, int]) -> dict[int, list[str]]:
    of_class: dict[int, list[str]] = {}
    for key, label in labels.items():
        of_class.setdefault(label, []).append(key)
    return of_class


def repeats(labels: Mapping[str, int], chosen: Collection[str]) -> dict[str, str]:
    """For each key a chosen one of its class: itself if it is chosen, and else all of them equally often, but for one time.

    Args:
        labels: by key.
        chosen: some of the keys.

    Raises:
        ValueError: none of the keys of a class is chosen.
    """
    instead = {key: key for key in chosen}
    for label, keys in _of_classes(labels).items():
        kept = sorted(key for key in keys if key in instead)
        if not kept:
            raise ValueError(f"of the {len(keys)} images of class {label} none is among the clean ones: take a larger percentage")
        instead |= zip(sorted(set(keys).difference(kept)), cycle(kept), strict=False)
    return instead


def protected_labels(pack: Folder, shards: Sequence[Shard], classes: Collection[int]) -> dict[str, int]:
    """Labels of the images in some shards that are of protected classes, by key.

    Args:
        pack: the folder of the clean shards.
        shards: those that are trained on.
        classes: labels of the classes that are protected.
    """
    names = {shard.name for shard in shards}
    rows = read_table(pack, SAMPLES, ["key", "label", "shard"]).to_pylist()
    return {row["key"]: row["label"] for row in rows if row["shard"] in names and row["label"] in classes}


@dataclass(frozen=True)
class Diluted:
    """Reads protected shards with some samples in their clean form.

    Attributes:
        pack: the folder of the clean shards, which have the names and keys of the protected ones.
        shards: what its manifest says of them.
        keys: of the samples that are clean.
    """

    pack: Folder
    shards: Sequence[Shard]
    keys: frozenset[str]

    def __call__(self, folder: Folder, shard: Shard) -> list[Sample]:
        """The samples of a protected shard.

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
    """Reads clean shards with some samples in the place of the others, so that there are as many of each class as before.

    Attributes:
        instead: the sample to take, by the key of the one that is there, which stays if it is not named. They are held in memory, as PNGs,
            because those that stand in for the samples of a shard lie in any other.
    """

    instead: Mapping[str, Sample]

    @classmethod
    def of(cls, pack: Folder, shards: Sequence[Shard], labels: Mapping[str, int], chosen: Collection[str]) -> Repeated:
        """The chosen samples in the place of all of their class.

        Args:
            pack: the folder of the clean shards.
            shards: what its manifest says of them.
            labels: of all samples that are not to stay as they are, by key.
            chosen: some of their keys.

        Raises:
            CorruptShard: a shard is not as recorded.
            ValueError: none is chosen of a class.
        """
        instead = repeats(labels, chosen)
        samples = {sample.key: sample for shard in shards for sample in read_shard(pack, shard) if sample.key in chosen}
        return cls({key: samples[other] for key, other in instead.items()})

    def __call__(self, folder: Folder, shard: Shard) -> list[Sample]:
        """The samples of a clean shard.

        Raises:
            CorruptShard: the shard is not as recorded.
        """
        return [self.instead.get(sample.key, sample) for sample in read_shard(folder, shard)]


def check_clean_shares(config: RunConfig, folder: Run, pack: Manifest) -> None:
    """See that each share of clean images that is to be trained on alone has some of every class, before anything is crafted.

    Raises:
        ValueError: one has not.
    """
    names = [name for name in config.victim.countermeasures if plan(name).clean_only] if "victim" in config.stages else []
    if not names:
        return
    labels = protected_labels(folder.child("pack"), pack.shards["train"], protected_classes(config, pack.counts["classes"]))
    for name, seed in product(names, config.victim.seeds):
        try:
            repeats(labels, clean_keys(labels, plan(name).clean_percent, config.seed, seed))
        except ValueError as error:
            raise ValueError(f"victim.countermeasures: {name}: {error}") from error
