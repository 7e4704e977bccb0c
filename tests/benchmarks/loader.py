"""Images that one core streams in a second: decoded in the first epoch, and from the machine's disk in later ones."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from pipeline.shards.decoded_cache import DecodedCache
from pipeline.shards.pixels import encode_png
from pipeline.shards.shard import Sample, write_shard
from pipeline.shards.tensors import Loading
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Shard
from pipeline.training.batches import Split, Streaming, unchanged
from tests.benchmarks.rates import threads

BATCH_SIZE = 128
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
    """Return the images per second of the processor's time, of a first epoch and of later ones; the best of several.

    Args:
        shards: in the data set.
        images: in each.
        side: of the images, in pixels.
        repetitions: of both kinds of epoch.
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
    return {"side": side, **rates}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the loader's figures as a table."""
    return [
        "| images streamed by one core | first epoch, images/s | later epochs, from its disk |",
        "|---|---|---|",
        *(f"| {row['side']:.0f} x {row['side']:.0f} | {row['first']:,.0f} | {row['later']:,.0f} |" for row in rows),
    ]
