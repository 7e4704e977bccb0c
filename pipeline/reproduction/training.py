"""The training of one network on one device, in pieces of one epoch, that goes on where an earlier start of it stopped.

Legend: K classes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.config.seeds import derive, generator
from pipeline.reproduction.machine import machine
from pipeline.reproduction.pieces import Clock, TimeIsUp, load, load_json, measured, save, save_json
from pipeline.reproduction.resident import Split
from sep import models
from sep.execution import Precision
from sep.fitting import accuracy, confusion, optimiser, train_epoch
from sep.train_config import TrainConfig

log = logging.getLogger(__name__)

TEST_BATCH = 500  # images
SAVE_SECONDS = 20  # between two states of a training, which cost as much to write as a quick epoch; what a kill can lose
MOST_CLASSES = 16  # for which every renaming can be looked at: the effort doubles with each


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained, and where."""

    network: str
    num_classes: int
    image_size: int
    mean: Sequence[float]  # per channel, in levels
    std: Sequence[float]
    config: TrainConfig
    seed: int
    device: torch.device
    precision: Precision  # not auto

    def build(self) -> models.Network:
        """The network, freshly initialised, on the CPU."""
        return models.build(self.network, self.num_classes, self.image_size, self.mean, self.std)


def relabelled_accuracy(table: Tensor) -> float | None:
    """Percent correct after the best one-to-one renaming of the predicted classes, exactly; None for many classes.

    Args:
        table: confusion counts `(K, K)`, rows are the truth.
    """
    if len(table) > MOST_CLASSES:
        return None
    best = {0: 0}  # most hits among the rows so far, by the set of predicted classes they took, as bits
    for row in table.tolist():
        longer: dict[int, int] = {}
        for taken, hits in best.items():
            for predicted, count in enumerate(row):
                if not taken >> predicted & 1:
                    now = taken | 1 << predicted
                    longer[now] = max(longer.get(now, 0), hits + count)
        best = longer
    (hits,) = best.values()
    return 100 * hits / int(table.sum())


def train(training: Training, images: Split, tests: Split | None, folder: Path, name: str, clock: Clock) -> dict[str, Any]:
    """Train to the end, or go on with it; what is finished is only read.

    Without `tests` every epoch's weights are kept as `<name>/epoch_0000.pt`; with them, every epoch is measured. `<name>.json`
    is written last.

    Args:
        training: what.
        images: training images, on the training's device.
        tests: clean test images, likewise.
        folder: where the files are.
        name: of the training.
        clock: when to stop.

    Returns:
        `epochs`: a row for each with `loss`, `train_accuracy`, `seconds`, `memory_gib` and, with tests, `test_accuracy`; with
        tests also `relabelled_accuracy` after the last. `machines`: those it was trained on.

    Raises:
        ValueError: the training diverged.
        TimeIsUp: it goes on at the next start.
    """
    finished = load_json(folder / f"{name}.json")
    if finished is not None:
        return finished
    result = _train(training, images, tests, folder, name, clock)
    save_json(folder / f"{name}.json", result)
    (folder / f"{name}.pt").unlink(missing_ok=True)
    clock.check(result["epochs"][-1]["seconds"])
    return result


def _train(training: Training, images: Split, tests: Split | None, folder: Path, name: str, clock: Clock) -> dict[str, Any]:
    config, device = training.config, training.device
    torch.manual_seed(training.seed)
    network = training.build().to(device).to(memory_format=torch.channels_last)
    steps = math.ceil(len(images.labels) / config.batch_size)
    sgd, scheduler = optimiser(network, config, steps)
    state = load(folder / f"{name}.pt")
    rows: list[dict[str, float]] = []
    machines: list[dict[str, Any]] = []
    if state is not None:
        network.load_state_dict(state["network"])
        sgd.load_state_dict(state["optimizer"])
        rows, machines = state["epochs"], state["machines"]
        scheduler.last_epoch = len(rows) * steps
        log.info("%s: goes on after epoch %d of %d", name, len(rows), config.epochs)
    if machine() not in machines:
        machines.append(machine())
    saved, result = time.monotonic(), {}
    for epoch in range(len(rows), config.epochs):
        with measured(device) as row:
            torch.manual_seed(derive(training.seed, "epoch", epoch))  # of dropout, where a network has it
            batches = images.shuffled(config.batch_size, generator(training.seed, "order", epoch))
            draws = generator(training.seed, "augment", epoch)
            fit = train_epoch(network, sgd, scheduler, batches, config.augmentation, draws, training.precision)
            if not fit.finite:
                raise ValueError(f"{name} diverged in epoch {epoch + 1} (loss {fit.loss}): try another --seed, or --precision float32")
            if tests is None:
                save(weights(folder, name, epoch), {"network": network.state_dict()})
            else:
                table = confusion(network, tests.in_order(TEST_BATCH), training.num_classes, training.precision)
                row["test_accuracy"] = accuracy(table)
                result = {"relabelled_accuracy": relabelled_accuracy(table) if epoch + 1 == config.epochs else None}
        rows.append({"loss": fit.loss, "train_accuracy": fit.accuracy, **row})
        _log(name, rows, config.epochs)
        over = clock.over(row["seconds"])
        if epoch + 1 < config.epochs and (over or time.monotonic() - saved > SAVE_SECONDS):
            weights_now = {"network": network.state_dict(), "optimizer": sgd.state_dict()}
            save(folder / f"{name}.pt", {**weights_now, "epochs": rows, "machines": machines})
            saved = time.monotonic()
            if over:
                raise TimeIsUp
    return {"epochs": rows, "machines": machines, **result}


def weights(folder: Path, name: str, epoch: int) -> Path:
    """The file of one epoch's weights, 0-based."""
    return folder / name / f"epoch_{epoch:04d}.pt"


def _log(name: str, rows: list[dict[str, float]], epochs: int) -> None:
    row = rows[-1]
    tested = f", test accuracy {row['test_accuracy']:.1f} %" if "test_accuracy" in row else ""
    message = "%s: epoch %d of %d, loss %.3f, training accuracy %.1f %%%s, %.1f s"
    log.info(message, name, len(rows), epochs, row["loss"], row["train_accuracy"], tested, row["seconds"])
