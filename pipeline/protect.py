"""Stage 3: checkpoints and clean shards become protected shards, each checked in integers on what storage gives back.

Legend: N checkpoints, K classes, D feature width.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import time
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from cluster import session
from cluster.pool import Work, run_all
from pipeline.batches import in_order, to_tensors
from pipeline.config import ProtectConfig, RunConfig, to_tree
from pipeline.ensemble import Checkpoint, choose, load_members, load_networks
from pipeline.parts import PARTS, Part, read_part, write_part
from pipeline.seeding import generator
from pipeline.shards import Sample, Shard, encode_png, pixels_sha256, read_shard, rows_to_table, sha256, write_shard, write_table
from pipeline.stage import Manifest, Stage
from pipeline.storage import Folder
from sep.budget import check, linf_levels, psnr_db
from sep.craft import craft
from sep.ensemble import class_sums
from sep.objective import shifted

log = logging.getLogger(__name__)

MEANS = "class_means.pt"
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

    run: Folder
    config: ProtectConfig
    seed: int
    stage_hash: str
    num_classes: int
    checkpoints: tuple[Checkpoint, ...]
    means_sha256: str | None
    gpu: bool

    @property
    def device(self) -> torch.device:
        """Where the gradients are taken."""
        return torch.device("cuda" if self.gpu else "cpu")


def sum_shard(task: Task, shard: Shard) -> tuple[Tensor, Tensor]:
    """One clean shard's share in the class means of every checkpoint: `(N, K, D)` float64 sums and `(K,)` counts."""
    _same_rounding_always()
    images, labels = to_tensors(read_shard(task.run.child("pack"), shard))
    networks = load_networks(task.run, task.checkpoints, task.device)
    each = [class_sums(network, in_order(images, labels, task.config.batch_size), task.num_classes) for network in networks]
    return torch.stack([sums for sums, _ in each]), each[0][1]


def craft_shard(task: Task, shard: Shard) -> Part:
    """Craft, write and check one protected shard; its part is written last and makes it finished.

    Raises:
        ValueError: an input was altered, or a protected image as stored breaks the budget.
    """
    _same_rounding_always()
    config, out = task.config, task.run.child("protect")
    samples = read_shard(task.run.child("pack"), shard)
    clean, labels = to_tensors(samples)
    means = list(_load_means(task.run, task.means_sha256)) if task.means_sha256 else None
    members = load_members(task.run, task.checkpoints, means, task.device)
    targets = shifted(labels, task.num_classes)
    protected = [
        craft(members, clean[at], targets[at], config, generator(task.seed, "craft", samples[at.start].key))
        for at in (slice(start, start + config.batch_size) for start in range(0, len(samples), config.batch_size))
    ]
    pixels = torch.cat(protected).permute(0, 2, 3, 1).contiguous().numpy()
    written = write_shard(
        out, shard.name, [dataclasses.replace(sample, png=encode_png(image)) for sample, image in zip(samples, pixels, strict=True)]
    )
    part = Part(written, _check(out, written, samples, clean, config.eps_levels), {})
    write_part(out, part, task.stage_hash)
    return part


def _same_rounding_always() -> None:
    """Another number of threads, or another algorithm, can round sums differently; bytes must depend on neither."""
    torch.set_num_threads(1)
    torch.backends.cudnn.deterministic = True


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


@lru_cache(maxsize=1)
def _load_means(run: Folder, digest: str) -> Tensor:
    data = run.child("protect").read(MEANS)
    if sha256(data) != digest:
        raise ValueError(f"{run.uri}/protect/{MEANS} was altered while it was in use: run the protect stage again")
    means: Tensor = torch.load(io.BytesIO(data), weights_only=True)
    return means


def _write_means(task: Task, shards: list[Shard], resources: session.Resources) -> str:
    """Class means of every checkpoint over the whole training set, combined in the order of the shards."""
    pieces = [Work(shard.name, (task, shard), shard.count) for shard in shards]
    sums = dict(run_all(sum_shard, pieces, what="class means", at_once=resources.tasks, gpus=resources.gpu))
    ordered = [sums[shard.name] for shard in shards]
    *_, total = accumulate((part for part, _ in ordered), torch.add)
    *_, counts = accumulate((part for _, part in ordered), torch.add)
    stream = io.BytesIO()
    torch.save((total / counts[None, :, None]).float(), stream)
    task.run.child("protect").write(MEANS, stream.getvalue())
    return sha256(stream.getvalue())


def run(config: RunConfig, folder: Folder) -> Manifest:
    """Protect the shards that are not protected yet.

    Raises:
        ValueError: an earlier stage has not finished, or the stage was done with another configuration.
        WorkFailed: shards failed, after all others were finished.
    """
    section = to_tree(config.protect)
    stage = Stage(folder, "protect", section, seed=config.seed, inputs=("pack", "surrogate"), overwrite=config.overwrite)
    if stage.manifest:
        return stage.manifest
    pack = Manifest.load(folder, "pack")
    shards = pack.shards["train"]
    resources = session.connect(config.workers)
    checkpoints = choose(folder, config.protect.members)
    task = Task(folder, config.protect, config.seed, stage.hash, len(pack.counts["classes"]), checkpoints, None, bool(resources.gpu))
    kept = {shard.name: read_part(stage.folder, shard.name, stage.hash) for shard in shards}
    parts = {name: part for name, part in kept.items() if part is not None}
    missing = [shard for shard in shards if shard.name not in parts]
    log.info("protect: %d of %d shards to craft", len(missing), len(shards))
    if config.protect.aligns_features and missing:
        task = dataclasses.replace(task, means_sha256=_write_means(task, shards, resources))
    begun = time.monotonic()
    pieces = [Work(shard.name, (task, shard), shard.count) for shard in missing]
    parts |= run_all(craft_shard, pieces, what="protect", at_once=resources.tasks, gpus=resources.gpu)
    rate = sum(shard.count for shard in missing) / (time.monotonic() - begun)
    return _finish(stage, [parts[shard.name] for shard in shards], checkpoints, config.protect, rate)


def _finish(stage: Stage, parts: list[Part], checkpoints: tuple[Checkpoint, ...], config: ProtectConfig, rate: float) -> Manifest:
    """Combine the parts into one table, and say what came out."""
    table = pa.concat_tables([part.rows for part in parts])
    write_table(stage.folder, SAMPLES, table)
    finite = [value for value in table["psnr_db"].to_pylist() if value != float("inf")]
    counts: dict[str, Any] = {
        "images": table.num_rows,
        "method": config.method,
        "eps_levels": config.eps_levels,
        "steps": config.steps,
        "epochs": [checkpoint.epoch for checkpoint in checkpoints],
        "gradients": table.num_rows * config.gradients_per_image,
        "linf_levels": max(table["linf_levels"].to_pylist()),
        "psnr_db": sum(finite) / max(1, len(finite)),
    }
    manifest = stage.finish(counts, {"train": [part.shard for part in parts]}, images_per_second=rate)
    stage.folder.child(PARTS).delete()
    return manifest
