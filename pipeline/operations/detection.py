"""Detection: how well the released images of a run are told apart from clean ones. Detectors learn from some, and judge others.

Both kinds of pictures come from the run: those to learn from and those to judge are chosen by a hash of their keys.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipeline.config.recorded import recorded
from pipeline.config.seeds import derive
from pipeline.config.sight import victim_side
from pipeline.operations.roc import area
from pipeline.shards.shard import CorruptShard, Sample, read_shard
from pipeline.shards.tables import read_table
from pipeline.shards.tensors import to_images
from pipeline.storage.layout import CHOSEN, DETECTION, RELEASE
from pipeline.storage.records import release_of, to_json
from pipeline.storage.run import Run
from pipeline.storage.stage import Manifest, Shard
from sep.detection.classifier import convolutional, linear
from sep.detection.features import residual, spectrum
from sep.detection.filtering import iterative_filtering
from sep.detection.pairs import Detector, Pairs
from sep.views.codecs import BLOCK
from sep.views.own_size import fixed_view

LEAST = 20  # pictures: ten to learn from, and ten to judge
USUAL, FEWEST = 2000, 200  # pictures, if nobody says how many
USUAL_PIXELS = 64**2  # from where on the small network takes longer for larger pictures
DETECTORS: Mapping[str, Detector] = {
    "spectrum": partial(linear, features=spectrum),
    "residual": partial(linear, features=residual),
    "convolutional": convolutional,
    "iterative-filtering": iterative_filtering,
}


@dataclass(frozen=True)
class Asked:
    """The images that detectors are measured on, as a part of their record.

    Attributes:
        images: the most pictures, to learn from and to judge together.
        seed: of the choice of pictures, and of the detectors.
        split: of the release.
    """

    images: int
    seed: int
    split: str


def detect(
    run: Run,
    names: Sequence[str] = (),
    images: int | None = None,
    seed: int = 0,
    split: str = "train",
    began: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure the detectors that the record of the run lacks, and return the record.

    The record is written after each detector, so that another start goes on after the last one. One of another release or of other
    settings is replaced.

    Args:
        run: with a release.
        names: of the detectors to measure; all if none is given.
        images: the most pictures, to learn from and to judge together; if not given, `usual_images`.
        seed: of the choice of pictures, and of the detectors.
        split: of the release.
        began: called with the name of a detector before it begins.

    Raises:
        ValueError: a detector is unknown, there is no release, the split is not in it, or its protected pictures are too few or too small.
        OSError: storage refused.
    """
    if strange := [name for name in names if name not in DETECTORS]:
        raise ValueError(f"--detectors: expected some of {', '.join(DETECTORS)}; got {strange[0]}")
    release, pack = Manifest.load(run, "protect"), Manifest.load(run, "pack")
    side = victim_side(recorded(run))
    asked = Asked(usual_images(pack, side) if images is None else images, seed, split)
    if asked.images < LEAST:
        raise ValueError(f"--images: expected at least {LEAST}, half of them to learn from and half to judge; got {asked.images}")
    record = {RELEASE: release.digest, "asked": asdict(asked), "detectors": []} | _earlier(run, release.digest, asked)
    finished = {row["name"] for row in record["detectors"]}
    missing = [name for name in names or DETECTORS if name not in finished]
    if not missing:
        return record
    learn, judge = chosen(run, pack, release, asked, side)
    for name in missing:
        began(name)
        begun = time.monotonic()
        scores = DETECTORS[name](learn, judge, len(pack.counts["classes"]), derive(seed, "detection", name))
        found = area(scores.values.double().numpy(), scores.protected.numpy(), scores.pictures.numpy())
        record["detectors"].append({"name": name, **asdict(found), "seconds": round(time.monotonic() - begun, 1)})
        run.write(DETECTION, to_json(record))
    return record


def usual_images(pack: Manifest, side: int | None) -> int:
    """Return the number of pictures that takes about five minutes on two cores, which falls with their pixels."""
    pixels = side**2 if side else pack.counts["height"] * pack.counts["width"]
    return max(FEWEST, min(USUAL, USUAL * USUAL_PIXELS // pixels))


def _earlier(run: Run, release: str, asked: Asked) -> dict[str, Any]:
    """Return the record of an earlier start, if it is of this release and of the same settings."""
    try:
        found: dict[str, Any] = json.loads(run.read(DETECTION))
        return found if (release_of(found), found["asked"]) == (release, asdict(asked)) else {}
    except (FileNotFoundError, ValueError, KeyError):
        return {}


def chosen(run: Run, pack: Manifest, release: Manifest, asked: Asked, side: int | None) -> tuple[Pairs, Pairs]:
    """Return pictures to learn from, and as many others to judge: as networks see them in tests, on a GPU if there is one.

    Raises:
        ValueError: see `detect`.
    """
    if not release.shards.get(asked.split):
        raise ValueError(f"--split: expected one of the release ({', '.join(release.shards)}), got {asked.split}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clean: list[Tensor] = []
    protected: list[Tensor] = []
    labels: list[int] = []
    keys: list[str] = []
    for every in _protected_pairs(run, pack, release, asked):
        pairs = every[: asked.images - len(keys)]
        for images, form in ((clean, [pair[0] for pair in pairs]), (protected, [pair[1] for pair in pairs])):
            images.append(fixed_view(to_images(form, side)[0], side))
        labels += [sample.label for sample, _ in pairs]
        keys += [sample.key for sample, _ in pairs]
        if len(keys) >= asked.images:
            break
    if len(keys) < LEAST:
        raise ValueError(f"{run.uri}: expected at least {LEAST} protected images in split {asked.split}, found {len(keys)}: protect more")
    everything = Pairs(torch.cat(clean).to(device), torch.cat(protected).to(device), torch.tensor(labels))
    if min(everything.clean.shape[2:]) < BLOCK:
        raise ValueError(f"{run.uri}: expected images of at least {BLOCK} pixels a side, found {tuple(everything.clean.shape[2:])}")
    order = torch.tensor(sorted(range(len(keys)), key=lambda place: derive(asked.seed, "detection", keys[place])))
    half = len(keys) // 2
    return _some(everything, order[:half]), _some(everything, order[half : 2 * half])


def _some(pairs: Pairs, places: Tensor) -> Pairs:
    where = places.to(pairs.clean.device)
    return Pairs(pairs.clean[where], pairs.protected[where], pairs.labels[places])


def _protected_pairs(run: Run, pack: Manifest, release: Manifest, asked: Asked) -> Iterator[list[tuple[Sample, Sample]]]:
    """Yield the protected pictures in both forms, shard by shard: shards and pictures in the order of a seeded hash."""

    def rank(name: str) -> int:
        return derive(asked.seed, "chosen", name)

    twins: dict[str, Shard] = {shard.name: shard for shard in pack.shards[asked.split]}
    classes, protect = set(release.counts["classes"]), run.child("protect")
    share = set(read_table(protect, CHOSEN)["key"].to_pylist()) if "chosen_sha256" in release.counts else None
    for shard in sorted(release.shards[asked.split], key=lambda shard: rank(shard.name)):
        clean = {sample.key: sample for sample in read_shard(run.child("pack"), twins[shard.name])}
        found = [sample for sample in read_shard(protect, shard) if sample.label in classes]
        found = found if share is None else [sample for sample in found if sample.key in share]
        if strange := [sample.key for sample in found if sample.key not in clean]:
            raise CorruptShard(f"{run.uri}/protect/{shard.name}: {strange[0]} has no clean form: verify.py names every fault")
        if found:
            yield [(clean[sample.key], sample) for sample in sorted(found, key=lambda sample: rank(sample.key))]
