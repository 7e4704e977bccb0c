"""The embedded data set: oriented gratings on natural-looking noise, generated from a seed.

The ten classes are five orientations at two spatial frequencies. They are hard enough that nothing is learned by
accident, and faint enough that a few grey levels can hide them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from pipeline.config.schema import SPLITS
from pipeline.shards.pixels import Pixels
from pipeline.sources.dataset import Dataset, Entry

SIDE = 32  # pixels
IMAGES = {"train": 2000, "test": 1000}
ORIENTATIONS = 5
CYCLES = (3.5, 7.0)  # per image
CLASSES = tuple(f"{180 // ORIENTATIONS * i}-degrees-{size}" for size in ("coarse", "fine") for i in range(ORIENTATIONS))


@dataclass(frozen=True)
class TextureReader:
    """A reader that draws the images on demand."""

    seed: int
    by_file: bool = False

    def read(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, Pixels]]:
        """Yield each entry with its `(32, 32, 3)` levels."""
        for split, inside in groupby(entries, key=lambda e: e.split):
            chosen = list(inside)
            yield from zip(chosen, textures(self.seed, split, [e.start for e in chosen]), strict=True)


def dataset(seed: int) -> Dataset:
    """Return 2,000 training and 1,000 test images, the classes in turn."""
    entries = [
        Entry(split, i % len(CLASSES), f"{CLASSES[i % len(CLASSES)]}/{split}-{i:05d}.png", start=i)
        for split, images in IMAGES.items()
        for i in range(images)
    ]
    return Dataset(CLASSES, entries, TextureReader(seed))


def textures(seed: int, split: str, indices: Sequence[int]) -> Pixels:
    """Draw images by number, with class `index % 10`. Each depends on (seed, split, index) alone.

    Returns:
        `(n, 32, 32, 3)` levels.
    """
    draws = [np.random.default_rng([seed, SPLITS.index(split), index]) for index in indices]
    noise = np.stack([rng.standard_normal((SIDE, SIDE, 3)) for rng in draws])

    def uniform(low: float, high: float, *shape: int) -> NDArray[np.float64]:
        """Return one draw per image, shaped to broadcast over `(n, H, W, C)`."""
        return np.stack([rng.uniform(low, high, (1, 1, *shape) if shape else (1, 1, 1)) for rng in draws])

    label = (np.array(indices) % len(CLASSES)).reshape(-1, 1, 1, 1)
    colour, spread = uniform(70, 185, 3), uniform(18, 34)
    angle = np.deg2rad((label % ORIENTATIONS) * (180 / ORIENTATIONS) + uniform(-7, 7))
    cycles = np.array(CYCLES)[label // ORIENTATIONS] * uniform(0.92, 1.08)
    phase, amplitude, gain = uniform(0, 2 * np.pi), uniform(14, 24), uniform(0.5, 1, 3)
    centre_x, centre_y = uniform(0.35, 0.65), uniform(0.35, 0.65)

    y, x = (axis[None, :, :, None] for axis in np.mgrid[:SIDE, :SIDE] / SIDE)
    grating = np.sin(2 * np.pi * cycles * (x * np.cos(angle) + y * np.sin(angle)) + phase)
    window = np.exp(-((x - centre_x) ** 2 + (y - centre_y) ** 2) / (2 * 0.3**2))
    levels = colour + spread * _shaped(noise) + amplitude * gain * window * grating
    images: Pixels = np.rint(levels).clip(0, 255).astype(np.uint8)
    return images


def _shaped(noise: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give white noise `(n, H, W, C)` a 1/f amplitude spectrum, with mean 0 and standard deviation 1 in each channel."""
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None, :])
    frequency[0, 0] = np.inf  # no constant part
    shaped = np.fft.irfft2(np.fft.rfft2(noise, axes=(1, 2)) / frequency[None, :, :, None], s=(SIDE, SIDE), axes=(1, 2))
    scaled: NDArray[np.float64] = shaped / shaped.std(axis=(1, 2), keepdims=True)
    return scaled
