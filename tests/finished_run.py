"""A tiny but true run: striped images, a trained surrogate, crafted shards and trained victims, in the layout of a run folder.

Everything is computed by `sep` in plain loops, in this process, in about two seconds; nothing needs Ray.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pipeline.config import RunConfig, preset, to_tree
from pipeline.shards import Pixels, Sample, Shard, encode_png, pixels_sha256, read_shard, rows_to_table, sha256, write_shard, write_table
from pipeline.stage import Manifest, Stage, to_json
from pipeline.storage import Folder
from sep import fitting
from sep.budget import linf_levels, psnr_db
from sep.craft import craft
from sep.ensemble import Member, class_sums, equally_spaced, freeze
from sep.models import Network, build
from sep.objective import shifted

CLASSES = ("diagonal", "horizontal", "vertical")
SIDE = 16
STAGES = ("pack", "surrogate", "protect", "victim")
CLEAN = pa.schema(
    {"key": pa.string(), "split": pa.string(), "label": pa.int64(), "class_name": pa.string(), "source": pa.string()}
    | {"shard": pa.string(), "sha256": pa.string(), "height": pa.int64(), "width": pa.int64()}
)
QUARANTINE = pa.schema({"source": pa.string(), "reason": pa.string()})
PROTECTED = pa.schema(
    {"key": pa.string(), "label": pa.int64(), "shard": pa.string(), "sha256": pa.string(), "clean_sha256": pa.string()}
    | {"linf_levels": pa.int32(), "psnr_db": pa.float64()}
)
RESULTS = pa.schema(
    {"network": pa.string(), "data": pa.string(), "countermeasure": pa.string(), "seed": pa.int64()}
    | {"last_accuracy": pa.float64(), "peak_accuracy": pa.float64(), "relabelled_accuracy": pa.float64()}
    | {"accuracy_per_epoch": pa.list_(pa.float64()), "loss_per_epoch": pa.list_(pa.float64())}
)


def configuration(run: Path, **changes: Any) -> RunConfig:
    """The smoke preset with a little more training and two seeds."""
    base = preset("smoke")
    settings: dict[str, Any] = {"epochs": 4, "batch_size": 12}
    return replace(
        base,
        run=str(run),
        surrogate=replace(base.surrogate, **settings),
        protect=replace(base.protect, steps=4),
        victim=replace(base.victim, seeds=(0, 1), **settings),
        **changes,
    )


def write(run: Path, stages: tuple[str, ...] = STAGES, config: RunConfig | None = None) -> tuple[RunConfig, Folder]:
    """Write the run and return its configuration and folder; stages that are there already stay as they are."""
    config = config or configuration(run)
    folder = Folder.open(str(run))
    folder.write("config.json", to_json(to_tree(config)))
    writers = {"pack": _pack, "surrogate": _surrogate, "protect": _protect, "victim": _victim}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on images this small, more threads only wait for one another
    try:
        for name in stages:
            writers[name](config, folder)
    finally:
        torch.set_num_threads(threads)
    return config, folder


def _texture(label: int, generator: np.random.Generator) -> Pixels:
    """Coloured stripes whose direction is the class."""
    y, x = np.mgrid[:SIDE, :SIDE] + generator.uniform(0, 8)
    wave = np.sin((x + y, y * 1.4, x * 1.4)[label] * 0.8)[..., None]
    levels = 128 + 70 * wave * generator.uniform(0.4, 1, 3) + generator.normal(0, 12, (SIDE, SIDE, 3))
    pixels: Pixels = levels.clip(0, 255).astype(np.uint8)
    return pixels


def _pack(config: RunConfig, folder: Folder) -> None:
    stage = Stage(folder, "pack", {"data": config.data, **to_tree(config.pack)}, seed=config.seed, overwrite=config.overwrite)
    generator = np.random.default_rng(config.seed)
    rows: list[dict[str, Any]] = []
    shards: dict[str, list[Shard]] = {"train": [], "test": []}
    levels: list[Pixels] = []
    for split, count in (("train", 2), ("test", 1)):
        for number in range(count):
            name, samples = f"{split}-{number:06d}.tar", []
            for index in range(18):
                label = index % len(CLASSES)
                pixels = _texture(label, generator)
                key, source = f"{split}-{number * 18 + index:08d}", f"{split}/{CLASSES[label]}/{number}-{index}.png"
                samples.append(Sample(key, encode_png(pixels), label, to_json({"source": source})))
                digest = pixels_sha256(pixels)
                rows.append(
                    {"key": key, "split": split, "label": label, "class_name": CLASSES[label], "source": source}
                    | {"shard": name, "sha256": digest, "height": SIDE, "width": SIDE}
                )
                levels.append(pixels)
            shards[split].append(write_shard(stage.folder, name, samples))
    write_table(stage.folder, "samples.parquet", rows_to_table(rows, CLEAN))
    refused = [{"source": "train/vertical/<broken> & half.jpg", "reason": "truncated"}, {"source": "train/notes.txt", "reason": "no image"}]
    write_table(stage.folder, "quarantine.parquet", rows_to_table(refused, QUARANTINE))
    values = np.stack(levels[:36]).reshape(-1, 3)
    counts = {"train": 36, "test": 18, "classes": list(CLASSES), "height": SIDE, "width": SIDE, "quarantined": len(refused)}
    stage.finish({**counts, "mean": values.mean(0).tolist(), "std": values.std(0).tolist()}, shards)


def _load(folder: Folder, stage: str, split: str) -> tuple[Tensor, Tensor, list[Sample]]:
    """Images `(B, 3, H, W)`, labels `(B,)` and the samples of one split, from the stored shards."""
    manifest = Manifest.load(folder, stage)
    samples = [sample for shard in manifest.shards[split] for sample in read_shard(folder.child(stage), shard)]
    images = torch.from_numpy(np.stack([sample.pixels for sample in samples])).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor([sample.label for sample in samples]), samples


def _batches(images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(images[start : start + 12], labels[start : start + 12]) for start in range(0, len(labels), 12)]


def _network(folder: Folder, seed: int) -> Network:
    torch.manual_seed(seed)
    counts = Manifest.load(folder, "pack").counts
    return build("resnet8", len(CLASSES), SIDE, counts["mean"], counts["std"])


def _surrogate(config: RunConfig, folder: Folder) -> None:
    stage = Stage(folder, "surrogate", to_tree(config.surrogate), seed=config.seed, inputs=("pack",), overwrite=config.overwrite)
    images, labels, _ = _load(folder, "pack", "train")
    network = _network(folder, config.seed)
    batches = _batches(images, labels)
    optimizer, scheduler = fitting.optimiser(network, config.surrogate, len(batches))
    entries = []
    for epoch in range(config.surrogate.epochs):
        rate = scheduler.get_last_lr()[0]
        result = fitting.train_epoch(network, optimizer, scheduler, batches, "none", torch.Generator())
        stream, name = io.BytesIO(), f"epoch_{epoch:04d}/weights.pt"
        torch.save(network.state_dict(), stream)
        stage.folder.write(name, stream.getvalue())
        metrics = {"loss": result.loss, "accuracy": result.accuracy, "lr": rate, "seconds": 0.1}
        entries.append({"epoch": epoch, "file": name, "sha256": sha256(stream.getvalue()), "metrics": metrics})
    stage.folder.write("checkpoints.json", to_json({"checkpoints": entries}))
    final = entries[-1]["metrics"]
    counts = {"epochs": len(entries), "network": "resnet8", "parameters": sum(p.numel() for p in network.parameters()), "workers": 1}
    stage.finish({**counts, "final_loss": final["loss"], "final_accuracy": final["accuracy"]})  # type: ignore[index]


def _members(config: RunConfig, folder: Folder, images: Tensor, labels: Tensor) -> tuple[list[int], list[Member]]:
    epochs, members = equally_spaced(config.surrogate.epochs, config.protect.members), []
    for epoch in epochs:
        network = _network(folder, config.seed)
        weights = io.BytesIO(folder.read(f"surrogate/epoch_{epoch:04d}/weights.pt"))
        network.load_state_dict(torch.load(weights, weights_only=True))
        frozen = freeze(network)
        sums, counts = class_sums(frozen, [(images, labels)], len(CLASSES))
        members.append(Member(frozen, (sums / counts[:, None]).float()))
    return epochs, members


def _protect(config: RunConfig, folder: Folder) -> None:
    noise = config.protect.method == "noise"
    inputs = ("pack", "surrogate")
    stage = Stage(folder, "protect", to_tree(config.protect), seed=config.seed, inputs=inputs, overwrite=config.overwrite)
    clean, labels, samples = _load(folder, "pack", "train")
    epochs, members = ([], []) if noise else _members(config, folder, clean, labels)
    protected = craft(members, clean, shifted(labels, len(CLASSES)), config.protect, torch.Generator().manual_seed(config.seed))
    largest, quality = linf_levels(protected, clean), psnr_db(protected, clean)
    rows, shards, start = [], [], 0
    for shard in Manifest.load(folder, "pack").shards["train"]:
        written = []
        for i in range(start, start + shard.count):
            pixels = protected[i].permute(1, 2, 0).numpy()
            written.append(replace(samples[i], png=encode_png(pixels)))
            rows.append(
                {"key": samples[i].key, "label": samples[i].label, "shard": shard.name, "sha256": pixels_sha256(pixels)}
                | {"clean_sha256": pixels_sha256(samples[i].pixels), "linf_levels": int(largest[i]), "psnr_db": float(quality[i])}
            )
        shards.append(write_shard(stage.folder, shard.name, written))
        start += shard.count
    write_table(stage.folder, "samples.parquet", rows_to_table(rows, PROTECTED))
    counts = {"images": len(rows), "method": config.protect.method, "eps_levels": config.protect.eps_levels, "steps": config.protect.steps}
    measured = {"linf_levels": int(largest.max()), "psnr_db": float(quality.mean())}
    stage.finish({**counts, **measured, "epochs": epochs, "gradients": config.protect.gradients_per_image}, {"train": shards})


def _victim(config: RunConfig, folder: Folder) -> None:
    inputs = ("pack", "protect")
    stage = Stage(folder, "victim", to_tree(config.victim), seed=config.seed, inputs=inputs, overwrite=config.overwrite)
    tests = [_load(folder, "pack", "test")[:2]]
    rows = []
    for data, source in (("clean", "pack"), ("protected", "protect")):
        images, labels, _ = _load(folder, source, "train")
        for seed in config.victim.seeds:
            network = _network(folder, 100 + seed)
            batches = _batches(images, labels)
            optimizer, scheduler = fitting.optimiser(network, config.victim, len(batches))
            losses, tables = [], []
            for _ in range(config.victim.epochs):
                losses.append(fitting.train_epoch(network, optimizer, scheduler, batches, "none", torch.Generator()).loss)
                tables.append(fitting.confusion(network, tests, len(CLASSES)))
            accuracies = [fitting.accuracy(table) for table in tables]
            truth, predicted = linear_sum_assignment(tables[-1].numpy(), maximize=True)
            relabelled = 100 * float(tables[-1][truth, predicted].sum()) / float(tables[-1].sum())
            rows.append(
                {"network": "resnet8", "data": data, "countermeasure": "none", "seed": seed, "relabelled_accuracy": relabelled}
                | {"last_accuracy": accuracies[-1], "peak_accuracy": max(accuracies)}
                | {"accuracy_per_epoch": accuracies, "loss_per_epoch": losses}
            )
    for row in rows:
        stage.folder.write(f"resnet8-{row['data']}-none-seed{row['seed']}.json", to_json({**row, "hash": stage.hash}))
    write_table(stage.folder, "results.parquet", rows_to_table(rows, RESULTS))
    stage.finish({"trials": len(rows)})
