"""A tiny but true run: striped images, a trained surrogate, crafted shards and trained victims, in the layout of a run folder.

Everything is computed by `sep` in plain loops, in this process, in about two seconds; nothing needs Ray.
"""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pipeline.config.class_selection import choose_classes
from pipeline.config.presets import preset
from pipeline.config.schema import RunConfig, to_tree
from pipeline.protection.checkpoints import Checkpoint, Ensemble, choose, load_networks, read_index, weights_digest
from pipeline.shards.pixels import Pixels, encode_png, pixels_sha256
from pipeline.shards.shard import Sample, read_shard, write_shard
from pipeline.shards.tables import rows_to_table, write_table
from pipeline.storage.folder import Folder
from pipeline.storage.layout import open_run
from pipeline.storage.records import sha256, to_json
from pipeline.storage.stage import Manifest, Shard, Stage
from pipeline.training.networks import build_network
from sep import fitting
from sep.budget import linf_levels, psnr_db
from sep.craft import craft
from sep.ensemble import Member, class_sums
from sep.execution import resolve
from sep.models import Network, NetworkName
from sep.objective import choose_targets, shifted
from sep.quality import changed_percent, ssim
from sep.similarity import gradient_cosines

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
    | {"linf_levels": pa.int32(), "psnr_db": pa.float64(), "ssim": pa.float64(), "changed_percent": pa.float64()}
)
RESULTS = pa.schema(
    {"network": pa.string(), "data": pa.string(), "countermeasure": pa.string(), "seed": pa.int64()}
    | {"last_accuracy": pa.float64(), "peak_accuracy": pa.float64(), "relabelled_accuracy": pa.float64()}
    | {"other_accuracy": pa.float64(), "accuracy_per_class": pa.list_(pa.float64())}
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


def mixed_configuration(run: Path) -> RunConfig:
    """The same with two networks as surrogates and as victims, and two of the three classes protected."""
    base = configuration(run)
    networks: tuple[NetworkName, ...] = ("resnet8", "vit-small")
    return replace(
        base,
        surrogate=replace(base.surrogate, networks=networks, epochs=2),
        protect=replace(base.protect, classes=("horizontal", "2"), targets="random-class"),
        victim=replace(base.victim, networks=networks, seeds=(0,), epochs=2),
    )


def write(run: Path, stages: tuple[str, ...] = STAGES, config: RunConfig | None = None) -> tuple[RunConfig, Folder]:
    """Write the run and return its configuration and folder; stages that are there already stay as they are."""
    config = config or configuration(run)
    folder = open_run(str(run))
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


def _network(name: str, folder: Folder, seed: int) -> Network:
    torch.manual_seed(seed)
    return build_network(name, Manifest.load(folder, "pack"))


def _surrogate(config: RunConfig, folder: Folder) -> None:
    stage = Stage(folder, "surrogate", to_tree(config.surrogate), seed=config.seed, inputs=("pack",), overwrite=config.overwrite)
    images, labels, _ = _load(folder, "pack", "train")
    batches, names = _batches(images, labels), config.surrogate.networks
    entries: list[dict[str, Any]] = []
    parameters = []
    for name in names:
        network = _network(name, folder, config.seed)
        parameters.append(sum(p.numel() for p in network.parameters()))
        optimizer, scheduler = fitting.optimiser(network, config.surrogate, len(batches))
        for epoch in range(config.surrogate.epochs):
            rate = scheduler.get_last_lr()[0]
            result = fitting.train_epoch(network, optimizer, scheduler, batches, "none", torch.Generator())
            stream, file = io.BytesIO(), f"{f'{name}/' if len(names) > 1 else ''}epoch_{epoch:04d}/weights.pt"
            torch.save(network.state_dict(), stream)
            stage.folder.write(file, stream.getvalue())
            metrics = {"loss": result.loss, "accuracy": result.accuracy, "lr": rate, "seconds": 0.1}
            entries.append({"network": name, "epoch": epoch, "file": file, "sha256": sha256(stream.getvalue()), "metrics": metrics})
    stage.folder.write("checkpoints.json", to_json({"checkpoints": entries}))
    last = [entry["metrics"] for entry in entries if entry["epoch"] == config.surrogate.epochs - 1]
    final = {"final_loss": [metrics["loss"] for metrics in last], "final_accuracy": [metrics["accuracy"] for metrics in last]}
    counts = {"networks": list(names), "parameters": parameters, "epochs": config.surrogate.epochs, "workers": 1}
    stage.finish({**counts, **final, "weights_sha256": weights_digest(entries)})


def _members(config: RunConfig, folder: Folder, checkpoints: tuple[Checkpoint, ...], images: Tensor, labels: Tensor) -> list[Member]:
    members = []
    for frozen in load_networks(Ensemble(folder, checkpoints)):
        sums, counts = class_sums(frozen, [(images, labels)], len(CLASSES))
        members.append(Member(frozen, (sums / counts[:, None]).float() if config.protect.aligns_features else None))
    return members


def _similarity(config: RunConfig, folder: Folder, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """`protect/similarity.json` of a protection with two checkpoints or more of each network."""
    index = read_index(folder)
    wanted = shifted(labels, len(CLASSES))

    def cosines(checkpoints: tuple[Checkpoint, ...]) -> list[list[float]]:
        members = [Member(network) for network in load_networks(Ensemble(folder, checkpoints))]
        found: list[list[float]] = gradient_cosines(members, images, wanted).tolist()
        return found

    chosen = {name: choose({name: own}, config.protect.per_network, config.protect.epochs) for name, own in index.items()}
    return {
        "images": len(images),
        "checkpoints": [
            {"network": name, "epochs": [checkpoint.epoch for checkpoint in own], "cosines": cosines(own)} for name, own in chosen.items()
        ],
        "networks": {"names": list(index), "cosines": cosines(choose(index, 1))} if len(index) > 1 else None,
    }


def _protect(config: RunConfig, folder: Folder) -> None:
    protect = config.protect
    classes = choose_classes(protect.classes, CLASSES, "protect.classes")
    inputs = ("pack", "surrogate")
    stage = Stage(folder, "protect", to_tree(protect), seed=config.seed, inputs=inputs, overwrite=config.overwrite)
    clean, labels, samples = _load(folder, "pack", "train")
    checkpoints = choose(read_index(folder), protect.per_network, protect.epochs)
    if protect.method != "noise":
        stage.folder.write("similarity.json", to_json(_similarity(config, folder, clean[:12], labels[:12])))
    chosen = torch.isin(labels, torch.tensor(classes))
    draws = torch.randint(1000, (len(labels),), generator=torch.Generator().manual_seed(config.seed))
    targets = choose_targets(protect.targets, labels[chosen], classes, torch.Generator().manual_seed(config.seed), draws[chosen])
    members = _members(config, folder, checkpoints, clean, labels)
    protected = clean.clone()
    protected[chosen] = craft(members, clean[chosen], targets, protect, torch.Generator().manual_seed(config.seed))
    largest, quality = linf_levels(protected, clean), psnr_db(protected, clean)
    alike, touched = ssim(protected, clean), changed_percent(protected, clean)
    rows, shards, start = [], [], 0
    for shard in Manifest.load(folder, "pack").shards["train"]:
        written = []
        for i in range(start, start + shard.count):
            pixels = protected[i].permute(1, 2, 0).numpy()
            written.append(replace(samples[i], png=encode_png(pixels)))
            rows.append(
                {"key": samples[i].key, "label": samples[i].label, "shard": shard.name, "sha256": pixels_sha256(pixels)}
                | {"clean_sha256": pixels_sha256(samples[i].pixels), "linf_levels": int(largest[i]), "psnr_db": float(quality[i])}
                | {"ssim": float(alike[i]), "changed_percent": float(touched[i])}
            )
        shards.append(write_shard(stage.folder, shard.name, written))
        start += shard.count
    write_table(stage.folder, "samples.parquet", rows_to_table(rows, PROTECTED))
    counts = {"images": len(rows), "protected": int(chosen.sum()), "classes": list(classes), "members": len(checkpoints)}
    counts |= {name: getattr(protect, name) for name in ("method", "targets", "eps_levels", "steps")}
    counts |= {"networks": list(dict.fromkeys(c.network for c in checkpoints)), "epochs": sorted({c.epoch for c in checkpoints})}
    counts |= {"gradients": int(chosen.sum()) * protect.gradients_per_image(len(checkpoints)), "linf_levels": int(largest.max())}
    counts |= {"precision": resolve(protect.precision, torch.device("cpu"))}
    stage.finish({**counts, "psnr_db": float(quality[chosen].mean())}, {"train": shards}, images_per_second=1.0)


def _victim(config: RunConfig, folder: Folder) -> None:
    inputs = ("pack", "protect")
    stage = Stage(folder, "victim", to_tree(config.victim), seed=config.seed, inputs=inputs, overwrite=config.overwrite)
    tests = [_load(folder, "pack", "test")[:2]]
    images = {source: _load(folder, source, "train")[:2] for source in inputs}
    protected = Manifest.load(folder, "protect").counts["classes"]
    others = [label for label in range(len(CLASSES)) if label not in protected]
    rows = []
    for name, seed, (data, source) in product(config.victim.networks, config.victim.seeds, (("clean", "pack"), ("protected", "protect"))):
        network = _network(name, folder, 100 + seed)
        batches = _batches(*images[source])
        optimizer, scheduler = fitting.optimiser(network, config.victim, len(batches))
        losses, tables = [], []
        for _ in range(config.victim.epochs):
            losses.append(fitting.train_epoch(network, optimizer, scheduler, batches, "none", torch.Generator()).loss)
            tables.append(fitting.confusion(network, tests, len(CLASSES)))
        accuracies = [fitting.accuracy(table, protected) for table in tables]
        table = tables[-1][protected]
        truth, predicted = linear_sum_assignment(table.numpy(), maximize=True)
        relabelled = 100 * float(table[truth, predicted].sum()) / float(table.sum())
        rows.append(
            {"network": name, "data": data, "countermeasure": "none", "seed": seed, "relabelled_accuracy": relabelled}
            | {"last_accuracy": accuracies[-1], "peak_accuracy": max(accuracies)}
            | {"other_accuracy": fitting.accuracy(tables[-1], others) if others else None}
            | {"accuracy_per_class": [fitting.accuracy(tables[-1], [label]) for label in range(len(CLASSES))]}
            | {"accuracy_per_epoch": accuracies, "loss_per_epoch": losses, "confusion": tables[-1].tolist()}
        )
    for row in rows:
        stage.folder.write(f"{row['network']}-{row['data']}-none-seed{row['seed']}.json", to_json({**row, "hash": stage.hash}))
    write_table(stage.folder, "results.parquet", rows_to_table([{name: row[name] for name in RESULTS.names} for row in rows], RESULTS))
    stage.finish({"trials": len(rows)})
