"""Stage 3: checkpoints and clean shards become protected shards, each checked in integers on what storage gives back.

Images of classes that are not to be protected are released as they are, so that the shards are always the whole release.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from cluster import session
from cluster.pool import Chain, Room, Work, WorkFailed, run_all
from pipeline.batches import to_tensors
from pipeline.class_means import load_means, read_digest, write_means
from pipeline.classes import protected_classes
from pipeline.config import ProtectConfig, RunConfig, to_tree
from pipeline.ensemble import Ensemble, choose, read_index
from pipeline.parts import PARTS, Part, finished_parts, write_part, write_rows
from pipeline.seeding import derive, generator
from pipeline.shards import Sample, Shard, encode_png, pixels_sha256, read_shard, rows_to_table, write_shard
from pipeline.similarity import SIMILARITY, write_similarity
from pipeline.stage import Manifest, Stage, digest
from pipeline.storage import Folder
from sep.budget import check, linf_levels, psnr_db
from sep.craft import craft_in_parts
from sep.execution import MicroBatch, Precision, resolve
from sep.objective import choose_targets
from sep.quality import changed_percent, ssim

log = logging.getLogger(__name__)

SAMPLES = "samples.parquet"
MAY_CHANGE = ("batch_size", "tasks_per_gpu")  # between two starts: they decide how fast, not what
SCHEMA = pa.schema(
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
class Task:
    """What every shard's task is told."""

    ensemble: Ensemble
    config: ProtectConfig
    seed: int
    made_from: str
    classes: tuple[int, ...]  # labels that are protected
    clean: Folder  # where the clean shards are
    out: Folder  # where the protected ones go
    means: Folder  # where the class means are
    means_sha256: str | None


@dataclass(frozen=True)
class Clean:
    """A clean shard, decoded."""

    samples: list[Sample]
    images: Tensor  # (B, C, H, W) uint8
    labels: Tensor  # (B,)
    chosen: Tensor  # which of them are protected, in order


def read_clean(task: Task, shard: Shard) -> Clean:
    """The shard, checked and decoded.

    Raises:
        CorruptShard: it was altered.
    """
    samples = read_shard(task.clean, shard)
    images, labels = to_tensors(samples)
    return Clean(samples, images, labels, torch.isin(labels, torch.tensor(task.classes)).nonzero().flatten())


def craft_chosen(task: Task, shard: Shard, clean: Clean) -> Tensor:
    """The protected images of those classes that are to be protected, `(b, C, H, W)` uint8 on the CPU.

    Raises:
        ValueError: a checkpoint or the class means were altered.
    """
    # Another number of threads, or another algorithm, can round sums differently; bytes must depend on neither.
    torch.set_num_threads(1)
    torch.backends.cudnn.deterministic = True
    images, labels = clean.images[clean.chosen], clean.labels[clean.chosen]
    if not len(labels):
        return images
    config, ensemble = task.config, task.ensemble
    keys = [clean.samples[i].key for i in clean.chosen.tolist()]
    draws = torch.tensor([derive(task.seed, "target", key) for key in keys])
    targets = (
        labels if config.method == "noise" else choose_targets(config.targets, labels, task.classes, generator(task.seed, "targets"), draws)
    )
    means = load_means(task.means, task.means_sha256) if task.means_sha256 else None
    batch = _micro_batch(ensemble, config, tuple(images.shape[1:]))
    seeded = generator(task.seed, "craft", keys[0])
    return torch.cat(list(craft_in_parts(ensemble.members(means), images, targets, config, seeded, batch)))


@lru_cache(maxsize=1)  # a size at which memory ran out is not tried again for the next shard
def _micro_batch(ensemble: Ensemble, config: ProtectConfig, shape: tuple[int, ...]) -> MicroBatch:
    return MicroBatch.fitting(shape, ensemble.device) if config.batch_size == "auto" else MicroBatch(config.batch_size)


def release(task: Task, shard: Shard, clean: Clean, crafted: Tensor) -> Part:
    """Write the protected shard and check it; its part is written last and makes it finished.

    Raises:
        ValueError: a protected image as stored breaks the budget.
    """
    released = list(clean.samples)
    for i, image in zip(clean.chosen.tolist(), crafted.permute(0, 2, 3, 1).contiguous().numpy(), strict=True):
        released[i] = dataclasses.replace(released[i], png=encode_png(image))
    written = write_shard(task.out, shard.name, released)
    rows = _check(task.out, written, clean.samples, clean.images, task.config.eps_levels)
    finite = [psnr for row in rows if (psnr := row["psnr_db"]) != math.inf]
    extra = {
        "protected": len(clean.chosen),
        "linf_levels": max(row["linf_levels"] for row in rows),
        "psnr_db": [math.fsum(finite), len(finite)],
    }
    return write_part(task.out, written, rows_to_table(rows, SCHEMA), extra, task.made_from)


def _check(out: Folder, written: Shard, samples: list[Sample], clean: Tensor, eps_levels: int) -> list[dict[str, Any]]:
    """Hold the shard, as storage gives it back, to its clean one; one row per image."""
    back = read_shard(out, written)
    if [(s.key, s.label, s.info) for s in back] != [(s.key, s.label, s.info) for s in samples]:
        raise ValueError(f"{out.uri}/{written.name}: keys or labels differ from the clean shard")
    stored, _ = to_tensors(back)
    check(stored, clean, eps_levels)
    measured = {name: measure(stored, clean).tolist() for name, measure in MEASURES.items()}
    return [
        {
            "key": after.key,
            "label": after.label,
            "shard": written.name,
            "sha256": pixels_sha256(after.pixels),
            "clean_sha256": pixels_sha256(before.pixels),
            **{name: values[i] for name, values in measured.items()},
        }
        for i, (after, before) in enumerate(zip(back, samples, strict=True))
    ]


PROTECT = Chain(read_clean, craft_chosen, release)


def run(config: RunConfig, folder: Folder) -> Manifest:
    """Protect the shards that are not protected yet.

    Raises:
        ValueError: an earlier stage has not finished, the stage was done with another configuration, or a class is unknown.
        WorkFailed: shards failed, after all others were finished.
    """
    pack, protect = Manifest.load(folder, "pack"), config.protect
    names = pack.counts["classes"]
    classes = protected_classes(config, names)
    section = {name: value for name, value in to_tree(protect).items() if name not in MAY_CHANGE}
    stage = Stage(folder, "protect", section, seed=config.seed, inputs=("pack", "surrogate"), overwrite=config.overwrite)
    if stage.manifest:
        return stage.manifest
    resources = session.connect(config.workers)
    room = _room(config, resources)
    index = read_index(folder)
    checkpoints = choose(index, protect.per_network, protect.epochs)
    ensemble = Ensemble(folder, checkpoints, protect.kernels, bool(resources.gpu), protect.tasks_per_gpu)
    precision = _precision(protect, ensemble, room)
    protect = dataclasses.replace(protect, precision=precision)
    if not stage.folder.exists(SIMILARITY):
        write_similarity(stage.folder, folder, index, checkpoints, len(names), pack.shards["train"][0], bool(resources.gpu), room)
    means_sha256 = None
    if protect.aligns_features:
        size = None if protect.batch_size == "auto" else protect.batch_size
        means_sha256 = write_means(stage.folder, ensemble, len(names), size, pack.shards["train"], room, config.keep_going)
    made_from = digest([stage.hash, precision, means_sha256])
    out = stage.folder
    task = Task(ensemble, protect, config.seed, made_from, classes, folder.child("pack"), out, means=out, means_sha256=means_sha256)
    return _craft_all(task, stage, pack.shards["train"], config, room)


def add(config: RunConfig, run: Folder, folder: Folder) -> Manifest:
    """Protect images that were added to a finished run, as those of the run were: by its checkpoints, towards its class means.

    Args:
        config: of the run.
        run: the run.
        folder: of the addition, which is packed.

    Raises:
        ValueError: the run is not finished, or the addition was begun with another configuration.
        WorkFailed: shards failed, after all others were finished.
    """
    base, pack = Manifest.load(run, "protect"), Manifest.load(folder, "pack")
    section = {**base.asked["protect"], "added_to": base.digest}
    stage = Stage(folder, "protect", section, seed=config.seed, inputs=("pack",), overwrite=config.overwrite)
    if stage.manifest:
        return stage.manifest
    resources = session.connect(config.workers)
    protect = dataclasses.replace(config.protect, precision=base.counts["precision"])
    checkpoints = choose(read_index(run), protect.per_network, protect.epochs)
    ensemble = Ensemble(run, checkpoints, protect.kernels, bool(resources.gpu), protect.tasks_per_gpu)
    means = run.child("protect")
    sha256 = None
    if protect.aligns_features:
        if not (kept := read_digest(means)):
            raise ValueError(f"{means.uri} has no class means that can be read: run that stage again")
        sha256 = kept["sha256"]
    classes = tuple(base.counts["classes"])
    task = Task(ensemble, protect, config.seed, stage.hash, classes, folder.child("pack"), stage.folder, means=means, means_sha256=sha256)
    return _craft_all(task, stage, pack.shards["train"], config, _room(config, resources))


def _precision(config: ProtectConfig, ensemble: Ensemble, room: Room) -> Precision:
    """Decided once for all shards, so that one release is never half of one precision and half of another."""
    if config.precision != "auto" or not ensemble.gpu:
        return resolve(config.precision, torch.device("cpu"))
    answers = run_all(_resolve, [Work("precision", (config, ensemble))], what="precision", unit="GPUs", room=room)
    return dict(answers)["precision"]


def _resolve(config: ProtectConfig, ensemble: Ensemble) -> Precision:
    """What the GPU that computes can do; the body of a Ray task."""
    return resolve(config.precision, ensemble.device)


def _room(config: RunConfig, resources: session.Resources) -> Room:
    each = config.protect.tasks_per_gpu if resources.gpu else 1
    return Room(config.workers and config.workers * each, gpus=resources.gpu / each)


def _craft_all(task: Task, stage: Stage, shards: Sequence[Shard], config: RunConfig, room: Room) -> Manifest:
    """Craft the shards that are not finished, and finish the stage."""
    parts = finished_parts(stage.folder, [shard.name for shard in shards], task.made_from, Room(config.workers))
    missing = [shard for shard in shards if shard.name not in parts]
    log.info("protect: %d of %d shards to craft", len(missing), len(shards))
    begun, crafted = time.monotonic(), 0
    try:
        for name, part in run_all(PROTECT, [Work(s.name, (task, s), s.count) for s in missing], what="protect", room=room):
            parts[name] = part
            crafted += part.extra["protected"]
    except WorkFailed as failed:
        if not config.keep_going or not parts:
            raise
        log.error("protect: kept going without %d of %d shards", len(failed.causes), len(shards))
    return _finish(task, stage, shards, parts, crafted / (time.monotonic() - begun))


def _finish(task: Task, stage: Stage, shards: Sequence[Shard], parts: Mapping[str, Part], rate: float) -> Manifest:
    """Combine the parts into one table, and say what came out."""
    config, checkpoints = task.config, task.ensemble.checkpoints
    ordered = [parts[shard.name] for shard in shards if shard.name in parts]
    write_rows(stage.folder, SAMPLES, ordered, SCHEMA)
    protected = sum(part.extra["protected"] for part in ordered)
    psnr, changed = (math.fsum(part.extra["psnr_db"][i] for part in ordered) for i in range(2))
    counts: dict[str, Any] = {
        "images": sum(part.shard.count for part in ordered),
        "protected": protected,
        "classes": list(task.classes),
        "method": config.method,
        "targets": config.targets,
        "eps_levels": config.eps_levels,
        "steps": config.steps,
        "precision": config.precision,
        "networks": list(dict.fromkeys(checkpoint.network for checkpoint in checkpoints)),
        "epochs": sorted({checkpoint.epoch for checkpoint in checkpoints}),
        "members": len(checkpoints),
        "gradients": protected * config.gradients_per_image(len(checkpoints)),
        "linf_levels": max(part.extra["linf_levels"] for part in ordered),
        "psnr_db": psnr / max(1, changed),
    }
    left_out = [shard.name for shard in shards if shard.name not in parts]
    manifest = stage.finish(counts, {"train": [part.shard for part in ordered]}, missing=left_out, images_per_second=rate)
    if not left_out:
        stage.folder.child(PARTS).delete()
    return manifest
