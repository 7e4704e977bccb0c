"""Images that one core streams in a second: decoded in the first epoch, and from the machine's disk in later ones.

Beside them stands what a network takes: trained on the same core, and on the reference GPU of plans.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from pipeline.operations.probe import flops, fresh
from pipeline.operations.reference_gpu import NAME, NETWORK, SIDE, TRAINED
from pipeline.shards.decoded_cache import DecodedCache
from pipeline.shards.pixels import encode_png
from pipeline.shards.shard import Sample, write_shard
from pipeline.shards.tensors import Loading
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Shard
from pipeline.training.batches import Split, Streaming, unchanged
from sep.fitting import optimiser, train_epoch
from sep.models import build
from sep.train_config import TrainConfig
from tests.benchmarks.rates import threads

BATCH_SIZE = 128
CLASSES = 10
TRAINED_PIXELS = 2**18  # of a batch at most: 5 images of 224 x 224
NOISE = 8  # grey levels: as in a release at 8/255, which compresses worse than clean images


def write(folder: Folder, shards: int, images: int, side: int) -> list[Shard]:
    """Write shards of so many images each: smooth ones with noise, `side` pixels wide and high."""
    draw = torch.Generator().manual_seed(side)
    written = []
    for number in range(shards):
        coarse = torch.randint(256, (images, 3, 8, 8), generator=draw).float()
        smooth = functional.interpolate(coarse, size=(side, side), mode="bicubic")
        noisy = smooth + torch.randint(-NOISE, NOISE + 1, smooth.shape, generator=draw)
        pixels = noisy.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        samples = [Sample(f"{number:03d}{i:05d}", encode_png(image), i % 10, b"{}") for i, image in enumerate(pixels)]
        written.append(write_shard(folder, f"train-{number:06d}.tar", samples)[0])
    return written


def measure(shards: int, images: int, side: int, repetitions: int) -> dict[str, float]:
    """Return the images per second of the processor's time, of a first epoch, of later ones and of training; the best of several.

    Beside them is what the reference GPU would train, by the operations that the network takes at that size.

    Args:
        shards: in the data set.
        images: in each.
        side: of the images, in pixels.
        repetitions: of both kinds of epoch, and of a training step.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as name, threads(1):
        folder = Folder.open(f"{name}/pack")
        written, rates = write(folder, shards, images, side), dict[str, float]()
        for number in range(repetitions):
            cache = Path(name, f"cache-{number}")
            cache.mkdir()
            loading = Loading(cache=DecodedCache(cache, 10**12))
            batches = Streaming(folder, written, Split(min(BATCH_SIZE, images), 0), unchanged, loading=loading)
            for epoch in ("first", "later"):
                begun = time.process_time()
                count = sum(len(labels) for _, labels in batches.epoch(number))
                rates[epoch] = max(rates.get(epoch, 0), round(count / (time.process_time() - begun), 1))
        step = training_step(side)
        for _ in range(repetitions):
            begun = time.process_time()
            count = step()
            rates["trained"] = max(rates.get("trained", 0), round(count / (time.process_time() - begun), 1))
    return {"side": side, **rates, "gpu": round(on_gpu(side))}


def training_step(side: int) -> Callable[[], int]:
    """Return what trains ResNet18 by one batch and returns the number of its images; one has been trained on already."""
    count = min(BATCH_SIZE, TRAINED_PIXELS // side**2)
    network = build(NETWORK, CLASSES, side, (120.0,) * 3, (60.0,) * 3).to(memory_format=torch.channels_last)
    images, labels = torch.randint(256, (count, 3, side, side), dtype=torch.uint8), torch.arange(count) % CLASSES
    sgd, scheduler = optimiser(network, TrainConfig(epochs=1), 1000)

    def step() -> int:
        train_epoch(network, sgd, scheduler, [(images, labels)], "none", torch.Generator())
        return count

    step()
    return step


def on_gpu(side: int) -> float:
    """Return the images per second that the reference GPU trains on, if its rate goes by the operations alone."""
    small, here = (torch.zeros(1, 3, pixels, pixels) for pixels in (SIDE, side))
    return TRAINED * flops(fresh(NETWORK, small, CLASSES), small) / flops(fresh(NETWORK, here, CLASSES), here)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the loader's figures as a table."""
    return [
        f"| images/s of one core | streamed, first epoch | later epochs, from its disk | ResNet18 trained | trained by one {NAME} "
        "| cores for its first epoch |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row['side']:.0f} x {row['side']:.0f} | {row['first']:,.0f} | {row['later']:,.0f} | {row['trained']:,.1f} "
            f"| {row['gpu']:,.0f} | {math.ceil(row['gpu'] / row['first'])} |"
            for row in rows
        ),
    ]
