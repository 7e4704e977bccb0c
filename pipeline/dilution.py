"""A release of which some images are to be had from elsewhere as they were before: read from the clean shards instead.

Of those images the protected form is left out, so that a diluted training set is no larger than another (as Huang et al. 2021 mix clean
and unlearnable images). They are the same images and not others of their class, which a packed data set need not have.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pipeline.seeding import derive
from pipeline.shards import Sample, Shard, read_shard, read_table
from pipeline.storage import Folder


def choose(labels: dict[str, int], percent: int, seed: int) -> frozenset[str]:
    """That percentage of the keys, rounded, evenly over the classes; those of a smaller percentage are among those of a larger one.

    Args:
        labels: by key.
        percent: 0 to 100.
        seed: gives the order in which the keys of a class are taken.
    """
    of_class: dict[int, list[str]] = {}
    for key, label in labels.items():
        of_class.setdefault(label, []).append(key)
    ranked = []
    for keys in of_class.values():
        keys.sort(key=lambda key: derive(seed, key))
        # By the share of its class that would be taken with it, so that classes fill alike whatever their sizes.
        ranked += [((place + 0.5) / len(keys), derive(seed, key), key) for place, key in enumerate(keys)]
    return frozenset(key for *_, key in sorted(ranked)[: round(percent / 100 * len(labels))])


def clean_keys(pack: Folder, shards: Sequence[Shard], classes: Collection[int], percent: int, seed: int) -> frozenset[str]:
    """Keys of the images that are had clean.

    Args:
        pack: the folder of the clean shards.
        shards: those of the release.
        classes: labels of the classes that are protected.
        percent: of the protected images.
        seed: decides which.
    """
    released = {shard.name for shard in shards}
    rows = read_table(pack, "samples.parquet", ["key", "label", "shard"]).to_pylist()
    return choose({row["key"]: row["label"] for row in rows if row["shard"] in released and row["label"] in classes}, percent, seed)


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
