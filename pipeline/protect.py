"""Stage 3: checkpoints and clean shards become protected shards, each checked in integers on what storage gives back.

Images of classes that are not to be protected are released as they are, so that the shards are always the whole release.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from cluster import session
from cluster.pool import Work, run_all
from pipeline.batches import to_tensors
from pipeline.class_means import load_means, write_means
from pipeline.classes import protected_classes
from pipeline.config import ProtectConfig, RunConfig, to_tree
from pipeline.ensemble import Checkpoint, Ensemble, choose, read_index
from pipeline.parts import PARTS, Part, read_part, write_part
from pipeline.seeding import derive, generator
from pipeline.shards import Sample, Shard, encode_png, pixels_sha256, read_shard, rows_to_table, write_shard, write_table
from pipeline.similarity import SIMILARITY, write_similarity
from pipeline.stage import Manifest, Stage, digest
from pipeline.storage import Folder
from sep.budget import check, linf_levels, psnr_db
from sep.craft import craft_in_parts
from sep.execution import MicroBatch, resolve
from sep.objective import choose_targets

log = logging.getLogger(__name__)

SAMPLES = "samples.parquet"
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("label", pa.int64()),
        ("shard", pa.string()),
        ("sha256", pa.string()),
        ("clean_sha256", pa.string()),
        ("linf_levels", pa.int32()),
        ("psnr_db", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Task:
    """What every shard's task is told."""

    ensemble: Ensemble
    config: ProtectConfig
    seed: int
    made_from: str
    classes: tuple[int, ...]  # labels that are protected
    means_sha256: str | None

    @property
    def out(self) -> Folder:
        """Where the protected shards go."""
        return self.ensemble.run.child("protect")


def craft_shard(task: Task, shard: Shard) -> Part:
    """Craft, write and check one protected shard; its part is written last and makes it finished. The body of a Ray task.

    Raises:
        ValueError: an input was altered, or a protected image as stored breaks the budget.
    """
    # Another number of threads, or another algorithm, can round sums differently; bytes must depend on neither.
    torch.set_num_threads(1)
    torch.backends.cudnn.deterministic = True
    samples = read_shard(task.ensemble.run.child("pack"), shard)
    clean, labels = to_tensors(samples)
    chosen = torch.isin(labels, torch.tensor(task.classes)).nonzero().flatten()
    pngs = _craft([samples[i] for i in chosen.tolist()], clean[chosen], labels[chosen], task) if len(chosen) else []
    released = list(samples)
    for i, png in zip(chosen.tolist(), pngs, strict=True):
        released[i] = dataclasses.replace(samples[i], png=png)
    written = write_shard(task.out, shard.name, released)
    part = Part(written, _check(task.out, written, samples, clean, task.config.eps_levels), {"protected": len(chosen)})
    write_part(task.out, part, task.made_from)
    return part


def _craft(samples: list[Sample], clean: Tensor, labels: Tensor, task: Task) -> list[bytes]:
    """The protected images as PNGs; while one micro-batch is crafted the one before it is encoded."""
    config, ensemble = task.config, task.ensemble
    means = load_means(task.out, task.means_sha256) if task.means_sha256 else None
    draws = torch.tensor([derive(task.seed, "target", sample.key) for sample in samples])
    targets = (
        labels if config.method == "noise" else choose_targets(config.targets, labels, task.classes, generator(task.seed, "targets"), draws)
    )
    seeded = generator(task.seed, "craft", samples[0].key)
    parts = craft_in_parts(ensemble.members(means), clean, targets, config, seeded, _micro_batch(ensemble, config, tuple(clean.shape[1:])))
    with ThreadPoolExecutor(1) as encoder:
        encoded = [encoder.submit(_encode, part) for part in parts]
    return [png for future in encoded for png in future.result()]


@lru_cache(maxsize=1)  # a size at which memory ran out is not tried again for the next shard
def _micro_batch(ensemble: Ensemble, config: ProtectConfig, shape: tuple[int, ...]) -> MicroBatch:
    return MicroBatch.fitting(shape, ensemble.device) if config.batch_size == "auto" else MicroBatch(config.batch_size)


def _encode(protected: Tensor) -> list[bytes]:
    return [encode_png(image) for image in protected.permute(0, 2, 3, 1).contiguous().numpy()]


def _check(out: Folder, written: Shard, samples: list[Sample], clean: Tensor, eps_levels: int) -> pa.Table:
    """Hold the shard, as storage gives it back, to its clean one; one row per image."""
    back = read_shard(out, written)
    if [(s.key, s.label, s.info) for s in back] != [(s.key, s.label, s.info) for s in samples]:
        raise ValueError(f"{out.uri}/{written.name}: keys or labels differ from the clean shard")
    stored, _ = to_tensors(back)
    check(stored, clean, eps_levels)
    columns = zip(back, samples, linf_levels(stored, clean).tolist(), psnr_db(stored, clean).tolist(), strict=True)
    rows = [
        {
            "key": after.key,
            "label": after.label,
            "shard": written.name,
            "sha256": pixels_sha256(after.pixels),
            "clean_sha256": pixels_sha256(before.pixels),
            "linf_levels": linf,
            "psnr_db": psnr,
        }
        for after, before, linf, psnr in columns
    ]
    return rows_to_table(rows, SCHEMA)


def run(config: RunConfig, folder: Folder) -> Manifest:
    """Protect the shards that are not protected yet.

    Raises:
        ValueError: an earlier stage has not finished, the stage was done with another configuration, or a class is unknown.
        WorkFailed: shards failed, after all others were finished.
    """
    pack, protect = Manifest.load(folder, "pack"), config.protect
    names = pack.counts["classes"]
    classes = protected_classes(config, names)
    section = {name: value for name, value in to_tree(protect).items() if name != "batch_size"}  # which may change between two starts
    stage = Stage(folder, "protect", section, seed=config.seed, inputs=("pack", "surrogate"), overwrite=config.overwrite)
    if stage.manifest:
        return stage.manifest
    shards = pack.shards["train"]
    resources = session.connect(config.workers)
    index = read_index(folder)
    checkpoints = choose(index, protect.per_network, protect.epochs)
    ensemble = Ensemble(folder, checkpoints, protect.kernels, bool(resources.gpu))
    # Resolved here, so that one release is never half of one precision and half of another.
    protect = dataclasses.replace(protect, precision=resolve(protect.precision, ensemble.device))
    made_from = digest([stage.hash, protect.precision])
    kept = {shard.name: read_part(stage.folder, shard.name, made_from) for shard in shards}
    parts = {name: part for name, part in kept.items() if part is not None}
    missing = [shard for shard in shards if shard.name not in parts]
    if not stage.folder.exists(SIMILARITY):
        write_similarity(stage.folder, folder, index, checkpoints, len(names), shards[0], resources)
    means_sha256 = None
    if protect.aligns_features and missing:
        size = None if protect.batch_size == "auto" else protect.batch_size
        means_sha256 = write_means(stage.folder, ensemble, len(names), size, shards, resources)
    task = Task(ensemble, protect, config.seed, made_from, classes, means_sha256)
    log.info("protect: %d of %d shards to craft", len(missing), len(shards))
    begun = time.monotonic()
    pieces = [Work(shard.name, (task, shard), shard.count) for shard in missing]
    crafted = dict(run_all(craft_shard, pieces, what="protect", at_once=resources.tasks, gpus=resources.gpu))
    rate = sum(part.extra["protected"] for part in crafted.values()) / (time.monotonic() - begun)
    parts |= crafted
    return _finish(stage, [parts[shard.name] for shard in shards], checkpoints, classes, protect, rate)


def _finish(
    stage: Stage, parts: list[Part], checkpoints: tuple[Checkpoint, ...], classes: tuple[int, ...], config: ProtectConfig, rate: float
) -> Manifest:
    """Combine the parts into one table, and say what came out."""
    table = pa.concat_tables([part.rows for part in parts])
    write_table(stage.folder, SAMPLES, table)
    finite = [value for value in table["psnr_db"].to_pylist() if value != float("inf")]
    protected = sum(part.extra["protected"] for part in parts)
    counts: dict[str, Any] = {
        "images": table.num_rows,
        "protected": protected,
        "classes": list(classes),
        "method": config.method,
        "targets": config.targets,
        "eps_levels": config.eps_levels,
        "steps": config.steps,
        "precision": config.precision,
        "networks": list(dict.fromkeys(checkpoint.network for checkpoint in checkpoints)),
        "epochs": sorted({checkpoint.epoch for checkpoint in checkpoints}),
        "members": len(checkpoints),
        "gradients": protected * config.gradients_per_image(len(checkpoints)),
        "linf_levels": max(table["linf_levels"].to_pylist()),
        "psnr_db": sum(finite) / max(1, len(finite)),
    }
    manifest = stage.finish(counts, {"train": [part.shard for part in parts]}, images_per_second=rate)
    stage.folder.child(PARTS).delete()
    return manifest
