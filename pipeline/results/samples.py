"""The table of protected samples, streamed, and the images that a report shows.

The table has a row for every released image. Of 1.28 million rows, only one batch is in memory at a time; what is returned takes 4 bytes
for each measure and changed image.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.results.spectrum import Spectrum
from pipeline.shards.pixels import Pixels
from pipeline.shards.shard import Sample, read_shard
from pipeline.shards.tables import stream_table
from pipeline.storage.folder import Folder
from pipeline.storage.layout import SAMPLES
from pipeline.storage.run import Run
from pipeline.storage.stage import Manifest

MEASURES = ("psnr_db", "ssim", "linf_levels", "changed_percent")
SHOWN = 4  # images that a report shows, each of another class
OF_SPECTRUM = 128  # images that the spectrum of the changes is the mean of


class Place(NamedTuple):
    """The place of a sample."""

    key: str
    shard: str


@dataclass(frozen=True)
class ProtectedSamples:
    """The content of the table.

    Attributes:
        measures: by name, one value for each image that was changed; empty for a measure that was not taken.
        first: the first image of each class, by label.
        changed: the first images that were changed. A few suffice, because their shards have to be read.
        most: the image that was changed most, by PSNR, with its PSNR; None where none was changed.
        least: the image that was changed least.
    """

    measures: Mapping[str, NDArray[np.float32]]
    first: Mapping[int, Place]
    changed: Sequence[Place]
    most: tuple[float, Place] | None = None
    least: tuple[float, Place] | None = None

    @classmethod
    def read(cls, protect: Folder) -> ProtectedSamples:
        """Stream the table of a finished protect stage, once.

        Raises:
            FileNotFoundError: the table is missing.
            pyarrow.ArrowInvalid: the table is damaged.
        """
        values: dict[str, list[NDArray[np.float32]]] = {name: [] for name in MEASURES}
        first, unchanged = dict[int, Place](), dict[int, Place]()
        changed: list[Place] = []
        extremes: list[tuple[float, Place]] = []
        for batch in stream_table(protect, SAMPLES, ["key", "label", "shard", *MEASURES]):
            touched = pc.greater(batch["linf_levels"], 0)
            for found, rows in ((first, batch.filter(touched)), (unchanged, batch)):
                labels, at = np.unique(rows["label"].to_numpy(), return_index=True)
                for label, row in zip(labels.tolist(), at.tolist(), strict=True):
                    found.setdefault(label, _place(rows, row))
            changed += [_place(batch, row) for row in pc.indices_nonzero(touched)[: OF_SPECTRUM - len(changed)].to_pylist()]
            extremes = _extremes([*extremes, *_found(batch.filter(touched))])
            for name in set(MEASURES).intersection(batch.schema.names):  # runs of earlier versions lack some
                values[name].append(batch[name].filter(touched).drop_null().to_numpy(zero_copy_only=False).astype(np.float32))
        measures = {name: np.concatenate([np.empty(0, np.float32), *values.pop(name)]) for name in MEASURES}  # popped, or it is held twice
        return cls(measures, unchanged | first, changed, *((extremes[0], extremes[-1]) if extremes else ()))

    def shown(self, classes: Sequence[int]) -> list[Place]:
        """Return the first image of a few of these classes, spread over them."""
        labels = sorted(self.first.keys() & set(classes))
        count = min(SHOWN, len(labels))
        return [self.first[labels[i * len(labels) // count]] for i in range(count)]


def _found(changed: pa.RecordBatch) -> list[tuple[float, Place]]:
    """Return the images of a batch that were changed most and least, each with its PSNR."""
    if not changed.num_rows or "psnr_db" not in changed.schema.names:
        return []
    psnr = changed["psnr_db"].to_numpy(zero_copy_only=False)
    return [(float(psnr[row]), _place(changed, row)) for row in (int(np.nanargmin(psnr)), int(np.nanargmax(psnr)))]


def _extremes(found: list[tuple[float, Place]]) -> list[tuple[float, Place]]:
    """Return those with the lowest and the highest PSNR."""
    return [min(found), max(found)] if found else []


def _place(batch: pa.RecordBatch, row: int) -> Place:
    return Place(batch["key"][row].as_py(), batch["shard"][row].as_py())


@dataclass(frozen=True)
class ImagePair:
    """One image before and after protection, `(H, W, 3)` levels each, with the name of its class."""

    class_name: str
    clean: Pixels
    protected: Pixels


@dataclass(frozen=True)
class ShownImages:
    """The images that a report and a tracker show, read together: each shard once.

    Attributes:
        first: the first image of a few classes.
        pairs: these and the most and the least changed ones, before and after protection, in the order in which they lie in the shards.
        spectrum: of the first images that were changed.
    """

    first: Sequence[Place]
    pairs: Mapping[Place, ImagePair]
    spectrum: Spectrum

    @classmethod
    def read(cls, run: Run, manifests: Mapping[str, Manifest], samples: ProtectedSamples) -> ShownImages:
        """Read the images of a finished protect stage.

        Raises:
            CorruptShard: a shard is missing or was altered.
        """
        first, spectrum = samples.shown(manifests["protect"].counts["classes"]), Spectrum(manifests["pack"].counts.get("shortest"))
        wanted = dict.fromkeys([*first, *(extreme[1] for extreme in (samples.most, samples.least) if extreme)])
        pairs: dict[Place, ImagePair] = {}
        for place, image in image_pairs(run, manifests, dict.fromkeys([*wanted, *samples.changed])):
            if place in wanted:
                pairs[place] = image
            if place in samples.changed:
                spectrum.add(image.clean, image.protected)
        return cls(first, pairs, spectrum)


def image_pairs(run: Run, manifests: Mapping[str, Manifest], wanted: Collection[Place]) -> Iterator[tuple[Place, ImagePair]]:
    """Yield the images at these places, shard by shard; each shard is read once.

    Raises:
        CorruptShard: a shard is missing or was altered.
    """
    classes: list[str] = manifests["pack"].counts["classes"]
    for shard in dict.fromkeys(place.shard for place in wanted):
        clean, protected = (_samples(run, manifests[stage], shard, wanted) for stage in ("pack", "protect"))
        for place, sample in clean.items():
            yield place, ImagePair(classes[sample.label], sample.pixels, protected[place].pixels)


def _samples(run: Run, manifest: Manifest, name: str, wanted: Collection[Place]) -> dict[Place, Sample]:
    (shard,) = (shard for shards in manifest.shards.values() for shard in shards if shard.name == name)
    samples = ((Place(sample.key, name), sample) for sample in read_shard(run.child(manifest.stage), shard))
    return {place: sample for place, sample in samples if place in wanted}
