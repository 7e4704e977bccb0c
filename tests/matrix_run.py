"""A finished run whose victims were measured under many countermeasures; only their figures are made up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config.schema import RunConfig
from pipeline.shards.tables import rows_to_table, write_table
from pipeline.stages import report
from pipeline.storage.folder import Folder
from pipeline.storage.layout import trial_name
from pipeline.storage.records import to_json
from tests import finished_run

NAMES = (
    *("none", "no-augmentation", "cutout", "cutmix", "mixup", "grayscale", "jpeg-10", "jpeg-50", "jpeg-90", "bit-depth-2"),
    *("gaussian-blur", "trivial-augment", "ueraser", "adversarial-4", "adversarial-8", "random-warp", "orthogonal-projection"),
    *("early-stop", "dilution-10", "dilution-50"),
)
NETWORKS = ("resnet18", "vgg16-bn", "densenet121", "mobilenet-v2", "vit-small")
UNDONE = ("jpeg-10", "adversarial-8")
EPOCHS, EARLY = 12, 3  # the latter of early-stop


def rows(networks: Sequence[str], countermeasures: Sequence[str], seeds: int) -> list[dict[str, Any]]:
    """One row per victim: 60 to 80 % from clean images, 8 to 30 % from protected ones where nothing undoes the protection."""
    made = []
    for n, network in enumerate(networks):
        for c, name in enumerate(countermeasures):
            for seed in range(seeds):
                clean = 80 - 4 * n - (c % 7) + 0.7 * seed
                protected = clean - 3 if name in UNDONE else 8 + 3 * n + (5 * c) % 11 + 1.3 * seed
                epochs = EARLY if name == "early-stop" else EPOCHS
                for data, last in (("clean", clean), ("protected", protected)):
                    early = 20 if data == "protected" else 0  # a perturbation takes time to learn
                    curve = [last * min(1.0, (epoch + 2) / epochs) + early * (epoch < epochs // 3) for epoch in range(epochs)]
                    made.append(
                        {"network": network, "data": data, "countermeasure": name, "seed": seed}
                        | {"last_accuracy": curve[-1], "peak_accuracy": max(curve), "relabelled_accuracy": min(100.0, curve[-1] + 9)}
                        | {"other_accuracy": None, "accuracy_per_epoch": curve, "loss_per_epoch": [2.0 / (e + 1) for e in range(epochs)]}
                    )
    return made


def write(path: Path, networks: int = len(NETWORKS), countermeasures: int = len(NAMES), seeds: int = 3) -> tuple[RunConfig, Folder]:
    """The run, reported."""
    config, folder = finished_run.write(path)
    measured = rows(NETWORKS[:networks], NAMES[:countermeasures], seeds)
    write_table(folder.child("victim"), "results.parquet", rows_to_table(measured, finished_run.RESULTS))
    for row in measured:
        right = round(row["last_accuracy"])
        table = [[right if i == j else (100 - right) // 2 for j in range(3)] for i in range(3)]
        name = trial_name(row["network"], row["data"], row["countermeasure"], row["seed"])
        folder.child("victim").write(f"{name}.json", to_json({"confusion": table}))
    report.run(config, folder)
    return config, folder
