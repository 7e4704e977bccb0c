"""One shard of the release: read clean, crafted, written, and checked in integers as storage gives it back."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from cluster.work import Chain
from pipeline.protection.choice import chosen_keys
from pipeline.protection.crafting import CraftingTask, protect_images
from pipeline.shards.finished_shards import FinishedShard, write_finished_shard
from pipeline.shards.pixels import Pixels, colour_profile, encode_png, pixels_sha256
from pipeline.shards.shard import Sample, read_shard, write_shard
from pipeline.shards.tables import rows_to_table
from pipeline.shards.tensors import to_images
from pipeline.storage.stage import Shard
from sep.budget import check_budget, linf_levels, psnr_db
from sep.pictures import Images, stacks
from sep.quality import changed_percent, ssim

PROTECTED_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("label", pa.int64()),
        ("shard", pa.string()),
        ("sha256", pa.string()),
        ("clean_sha256", pa.string()),
        ("linf_levels", pa.int32()),
        ("psnr_db", pa.float64()),
        ("ssim", pa.float64()),
        ("changed_percent", pa.float64()),
    ]
)
MEASURES = {"linf_levels": linf_levels, "psnr_db": psnr_db, "ssim": ssim, "changed_percent": changed_percent}


@dataclass(frozen=True)
class Clean:
    """A clean shard, decoded."""

    samples: list[Sample]
    images: Images  # (B, C, H, W) uint8, or pictures of their own size
    labels: Tensor  # (B,)
    chosen: Tensor  # indices of the images that are protected, in order


class Crafted(NamedTuple):
    """The protected images of a shard, on the CPU, and how long they took."""

    images: Images
    seconds: float


def read_clean(task: CraftingTask, shard: Shard) -> Clean:
    """Read, check and decode a clean shard.

    Raises:
        CorruptShard: it was altered.
        ValueError: the record of the images to protect was altered.
    """
    samples = read_shard(task.clean, shard)
    images, labels = to_images(samples, task.ensemble.input_size)
    own = torch.isin(labels, torch.tensor(task.classes))
    if task.chosen:
        keys = chosen_keys(task.out, task.chosen)
        own &= torch.tensor([sample.key in keys for sample in samples])
    return Clean(samples, images, labels, own.nonzero().flatten())


def craft_chosen(task: CraftingTask, shard: Shard, clean: Clean) -> Crafted:
    """Craft the images that are protected.

    Raises:
        ValueError: a checkpoint or the preparation was altered.
    """
    begun, keys = time.monotonic(), [clean.samples[i].key for i in clean.chosen.tolist()]
    images = protect_images(task, shard.name, clean.images[clean.chosen], clean.labels[clean.chosen], keys)
    return Crafted(images, time.monotonic() - begun)


def release(task: CraftingTask, shard: Shard, clean: Clean, crafted: Crafted) -> FinishedShard:
    """Write the protected shard, check it as storage gives it back, and record it as finished.

    Raises:
        ValueError: a protected image as stored breaks the budget.
    """
    released, crafted_images = list(clean.samples), zip(clean.chosen.tolist(), crafted.images, strict=True)
    if task.ensemble.input_size is None:
        for i, image in crafted_images:
            released[i] = dataclasses.replace(released[i], image=encode_png(_pixels(image)))
    else:  # packed as they came: files of people, which may say where and by whom they were taken
        images = [*clean.images]
        for i, image in crafted_images:
            images[i] = image
        released = [_pixels_alone(sample, image) for sample, image in zip(released, images, strict=True)]
    written, stored = write_shard(task.out, shard.name, released)
    rows = _rows(task, shard.name, stored, clean)
    finite = [psnr for row in rows if (psnr := row["psnr_db"]) != math.inf]
    extra = {
        "protected": len(clean.chosen),
        "linf_levels": max(row["linf_levels"] for row in rows),
        "psnr_db": [math.fsum(finite), len(finite)],
        "seconds": crafted.seconds,
    }
    return write_finished_shard(task.out, written, rows_to_table(rows, PROTECTED_SCHEMA), extra, task.made_from)


def _pixels_alone(clean: Sample, image: Tensor) -> Sample:
    """Return a sample with another image, as a PNG of its pixels with the profile that says which colours they mean."""
    return dataclasses.replace(clean, image=encode_png(_pixels(image), colour_profile(clean.image)))


def _rows(task: CraftingTask, name: str, stored: list[Sample], clean: Clean) -> list[dict[str, Any]]:
    """Check a released shard, as storage gave it back, against its clean one; return one row per image."""
    if [(s.key, s.label, s.info) for s in stored] != [(s.key, s.label, s.info) for s in clean.samples]:
        raise ValueError(f"{task.out.uri}/{name}: keys or labels differ from the clean shard")
    images, _ = to_images(stored, task.ensemble.input_size)
    measured: dict[str, list[float]] = {measure: [] for measure in MEASURES}
    for after, before in zip(stacks(images), stacks(clean.images), strict=True):
        check_budget(after, before, task.budget)
        for measure, function in MEASURES.items():
            measured[measure] += function(after, before).tolist()
    return [
        {
            "key": sample.key,
            "label": sample.label,
            "shard": name,
            "sha256": pixels_sha256(_pixels(image)),
            "clean_sha256": pixels_sha256(_pixels(before)),
            **{measure: values[i] for measure, values in measured.items()},
        }
        for i, (sample, image, before) in enumerate(zip(stored, images, clean.images, strict=True))
    ]


def _pixels(image: Tensor) -> Pixels:
    """Return a `(C, H, W)` image as `(H, W, C)` levels."""
    pixels: Pixels = image.permute(1, 2, 0).contiguous().numpy()
    return pixels


PROTECT = Chain(read_clean, craft_chosen, release)
