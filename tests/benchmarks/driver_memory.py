"""Memory of the driver while a large run is reported and logged: `python -m tests.benchmarks.driver_memory`.

The run is made up: as many rows as ImageNet has images, and a thousand classes, all but one protected. Only the few shards that pictures
come from exist. A fresh process measures its memory with everything imported, and its peak while it writes the report and logs every
stage in MLflow, in a separate database.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.presets import preset
from pipeline.config.schema import RunConfig, to_tree
from pipeline.protection.release import PROTECTED_SCHEMA
from pipeline.results.machine import hardware
from pipeline.results.run_results import RunResults
from pipeline.shards.pixels import encode_png
from pipeline.shards.shard import Sample, write_shard
from pipeline.shards.tables import ROW_GROUP, rows_to_table, write_table
from pipeline.stages import pack, report
from pipeline.stages.victim import SCHEMA
from pipeline.storage.folder import Folder
from pipeline.storage.layout import CHECKPOINTS as INDEX
from pipeline.storage.layout import QUARANTINE, RESULTS, SAMPLES, SIMILARITY, trial_name
from pipeline.storage.records import to_json
from pipeline.storage.stage import Shard, Stage
from pipeline.tracking.tracker import open_tracker
from pipeline.training import trial_records
from tests.benchmarks.memory import in_a_fresh_process, resident

IMAGENET = 1_281_167  # training images
CLASSES = 1000
TEST_SHARE = 25  # training images for each test image
OF_A_SHARD = 250
EXISTING = CLASSES // OF_A_SHARD  # shards with images: the first image of every class lies in these
CHECKPOINTS = 30
MOST_MIB = 286.0  # 300 MB, beyond the memory with everything imported


def make(run: Path, rows: int, side: int) -> RunConfig:
    """Write a finished run of that many training images, `side` pixels a side, without the report; return its configuration."""
    base = preset("cifar10")
    config = replace(base, run=str(run), data="made-up", victim=replace(base.victim, seeds=(0,)))
    folder, generator = Folder.open(str(run)), np.random.default_rng(0)
    images = generator.integers(8, 248, (EXISTING * OF_A_SHARD, side // 8, side // 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    _pack(config, folder, rows, images)
    stage = Stage(folder, "surrogate", to_tree(config.surrogate), seed=0, inputs=("pack",))
    metrics = {"loss": 1.0, "accuracy": 50.0, "lr": 0.1, "seconds": 60.0, "waiting_seconds": 1.0}
    entries = [{"network": "resnet18", "epoch": e, "file": f"{e}.pt", "sha256": "", "metrics": metrics} for e in range(CHECKPOINTS)]
    stage.folder.write(INDEX, to_json({"checkpoints": entries}))
    stage.finish({"networks": ["resnet18"], "epochs": CHECKPOINTS})
    _protect(config, folder, rows, images, generator)
    _victims(config, folder)
    return config


def _shards(folder: Folder, rows: int, images: np.ndarray[Any, Any]) -> list[Shard]:
    """Write the shards that exist; return the entries of all."""
    shards = []
    for number in range(-(-rows // OF_A_SHARD)):
        name, start = f"train-{number:06d}.tar", number * OF_A_SHARD
        if number < EXISTING:
            each = range(start, start + OF_A_SHARD)
            shards.append(write_shard(folder, name, [Sample(f"train-{i:08d}", encode_png(images[i]), i % CLASSES, b"{}") for i in each])[0])
        else:
            shards.append(Shard(name, f"{number:064x}", min(OF_A_SHARD, rows - start)))
    return shards


def _table(folder: Folder, name: str, rows: int, schema: pa.Schema, columns: Callable[[np.ndarray[Any, Any]], dict[str, Any]]) -> None:
    """Write a table of that many rows; `columns` returns the columns of the rows at given positions."""
    with tempfile.TemporaryFile() as file:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for start in range(0, rows, ROW_GROUP):
                writer.write_table(pa.table(columns(np.arange(start, min(start + ROW_GROUP, rows))), schema))
        folder.write(name, file)


def _pack(config: RunConfig, folder: Folder, rows: int, images: np.ndarray[Any, Any]) -> None:
    stage = Stage(folder, "pack", {"data": config.data, **to_tree(config.pack)}, seed=0)
    tests, side = rows // TEST_SHARE, images.shape[1]

    def columns(at: np.ndarray[Any, Any]) -> dict[str, Any]:
        splits = np.where(at < rows, "train", "test")
        labels = at % CLASSES
        return {
            "key": [f"{split}-{i:08d}" for split, i in zip(splits, at, strict=True)],
            "split": splits,
            "label": labels,
            "class_name": [f"class {label}" for label in labels],
            "source": [f"{split}/class {label}/{i}.jpeg" for split, label, i in zip(splits, labels, at, strict=True)],
            "shard": [f"{split}-{i // OF_A_SHARD:06d}.tar" for split, i in zip(splits, at, strict=True)],
            "sha256": [f"{i:064x}" for i in at],
            "height": np.full(len(at), side),
            "width": np.full(len(at), side),
        }

    _table(stage.folder, SAMPLES, rows + tests, pack.SAMPLES_SCHEMA, columns)
    write_table(stage.folder, QUARANTINE, rows_to_table([], pack.QUARANTINE_SCHEMA))
    counts = {"train": rows, "test": tests, "classes": [f"class {i}" for i in range(CLASSES)], "height": side, "width": side}
    stage.finish({**counts, "quarantined": 0}, {"train": _shards(stage.folder, rows, images), "test": []})


def _protect(config: RunConfig, folder: Folder, rows: int, images: np.ndarray[Any, Any], generator: np.random.Generator) -> None:
    stage = Stage(folder, "protect", to_tree(config.protect), seed=0, inputs=("pack", "surrogate"))

    def columns(at: np.ndarray[Any, Any]) -> dict[str, Any]:
        touched = at % CLASSES > 0
        return {
            "key": [f"train-{i:08d}" for i in at],
            "label": at % CLASSES,
            "shard": [f"train-{i // OF_A_SHARD:06d}.tar" for i in at],
            "sha256": [f"{i + 1:064x}" for i in at],
            "clean_sha256": [f"{i:064x}" for i in at],
            "linf_levels": np.where(touched, 8, 0).astype(np.int32),
            # The page shows the images changed most and least: they are among those that exist.
            "psnr_db": np.select([at == 1, at == 2], [20.0, 60.0], generator.normal(33, 0.5, len(at))),
            "ssim": generator.normal(0.95, 0.01, len(at)),
            "changed_percent": generator.normal(98, 0.5, len(at)),
        }

    _table(stage.folder, SAMPLES, rows, PROTECTED_SCHEMA, columns)
    cosines = np.eye(CHECKPOINTS).tolist()
    similarity = {"checkpoints": [{"network": "resnet18", "epochs": list(range(CHECKPOINTS)), "cosines": cosines}], "networks": None}
    stage.folder.write(SIMILARITY, to_json(similarity))
    noise = generator.integers(-8, 9, images.shape, np.int8)
    counts = {"images": rows, "protected": rows - rows // CLASSES, "classes": list(range(1, CLASSES)), "linf_levels": 8, "psnr_db": 33.0}
    counts |= {"networks": ["resnet18"], "epochs": list(range(CHECKPOINTS)), "members": CHECKPOINTS, "gradients": 900 * rows}
    counts |= {name: getattr(config.protect, name) for name in ("method", "targets", "eps_levels", "steps")} | {"precision": "bf16"}
    shards = _shards(stage.folder, rows, (images + noise).astype(np.uint8))
    stage.finish(counts, {"train": shards}, images_per_second=100.0)


def _victims(config: RunConfig, folder: Folder) -> None:
    stage = Stage(folder, "victim", to_tree(config.victim), seed=0, inputs=("pack", "protect"))
    table = np.full((CLASSES, CLASSES), 1).tolist()
    rows = []
    for data, accuracy in (("clean", 70.0), ("protected", 5.0)):
        curve = np.linspace(0.1, accuracy, config.victim.epochs).tolist()
        rows.append(
            {"network": "resnet18", "data": data, "countermeasure": "none", "seed": 0, "accuracy_per_class": [accuracy] * CLASSES}
            | {f"{kind}_accuracy": accuracy for kind in ("last", "peak", "relabelled", "other")}
            | {"accuracy_per_epoch": curve, "loss_per_epoch": curve[::-1]}
        )
        trial_records.write(stage.folder, trial_name("resnet18", data, "none", 0), {"confusion": table, "made_from": stage.hash})
    write_table(stage.folder, RESULTS, rows_to_table(rows, SCHEMA))
    stage.finish({"trials": len(rows)})


def watched(config: RunConfig) -> dict[str, float]:
    """Report a run and log all its stages; return the memory of this process before and at its peak, in MiB."""
    import mlflow  # noqa: F401  # loaded anyway, as is what draws: neither grows with the run
    from mlflow import MlflowClient  # noqa: F401

    from pipeline.pages import confusion_figures, image_figures, training_figures  # noqa: F401

    folder, before = Folder.open(config.run), resident("VmRSS")
    report.execute(config, folder)
    reported = resident("VmHWM")
    tracker = open_tracker(config, folder)
    for stage in config.stages:
        tracker.log_stage(stage, RunResults.read(folder))
    tracker.close("FINISHED")
    return {"imported_mib": before, "report_mib": reported, "report_and_tracker_mib": resident("VmHWM")}


def measure(rows: int, side: int) -> dict[str, Any]:
    """Return the figures of a made-up run of that many training images, `side` pixels a side."""
    with tempfile.TemporaryDirectory() as scratch:
        found = in_a_fresh_process(watched, make(Path(scratch) / "run", rows, side))
    above = round(found["report_and_tracker_mib"] - found["imported_mib"], 1)
    return {"rows": rows, "side": side, **found, "above_imports_mib": above}


def main() -> int:
    """Measure, print, and write a card if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=IMAGENET, help="training images")
    parser.add_argument("--side", type=int, default=224, help="pixels, a multiple of 8")
    parser.add_argument("--card", type=Path, help="JSON file for the figures")
    given = parser.parse_args()
    figures = measure(given.rows, given.side)
    command = f"python -m tests.benchmarks.driver_memory --rows {given.rows} --side {given.side}"
    card = {"command": command, **figures, "hardware": hardware(), "versions": {"pyarrow": pa.__version__, "numpy": np.__version__}}
    print(json.dumps(card, indent=2))
    if given.card:
        given.card.write_bytes(to_json(card))
    return int(figures["above_imports_mib"] > MOST_MIB)


if __name__ == "__main__":
    raise SystemExit(main())
