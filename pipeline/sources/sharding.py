"""The division of a data set into shards: by the number of images, and by their pixels where images have their own size."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pipeline.config.schema import SPLITS
from pipeline.sources import decoding
from pipeline.sources.dataset import Dataset, Entry, Reader
from pipeline.storage.layout import shard_name

BYTES_PER_PIXEL = 8  # 16-bit RGBA, uncompressed: no image needs more
METADATA_BYTES = 2**26  # beside the pixels: comments, profiles, previews
SHARD_PIXELS = 2**25  # of a shard of pictures at their own size, if it has more than one: all of them are decoded at once


def images_by_shard(dataset: Dataset, shard_images: int, pixels: Mapping[str, int] | None = None) -> dict[str, list[Entry]]:
    """Return the images of each shard, in order.

    Args:
        dataset: from the scan.
        shard_images: most images of a shard.
        pixels: of each image, by its key, if shards are to have about as many pixels each.
    """
    shards: dict[str, list[Entry]] = {}
    for split in SPLITS:
        entries = dataset.split(split)
        for number, some in enumerate(_balanced(entries, shard_images, pixels) if pixels else _counted(entries, shard_images)):
            shards[shard_name(split, number)] = some
    return shards


def _counted(entries: list[Entry], shard_images: int) -> list[list[Entry]]:
    return [entries[start : start + shard_images] for start in range(0, len(entries), shard_images)]


def _balanced(entries: list[Entry], shard_images: int, pixels: Mapping[str, int]) -> list[list[Entry]]:
    """Cut entries where shards come closest to the same number of pixels, which all of them could have and fit in memory."""
    total = sum(pixels[entry.key] for entry in entries)
    wanted = total / max(1, -(-len(entries) // shard_images), -(-total // SHARD_PIXELS))
    shards: list[list[Entry]] = []
    held = math.inf
    for entry in entries:
        own = pixels[entry.key]
        if held + own / 2 > wanted or len(shards[-1]) == shard_images:
            shards.append([])
            held = 0
        shards[-1].append(entry)
        held += own
    return shards


def pixels_of(entries: list[Entry], reader: Reader, max_pixels: int) -> dict[str, int]:
    """Return the pixels of some images by their keys. This is the body of a task."""
    found = dict.fromkeys((entry.key for entry in entries), 0)
    for entry, content in reader.read([e for e in entries if e.size <= most_file_bytes(max_pixels) and not e.fault]):
        count = decoding.pixels_in(content) if isinstance(content, bytes) else content.shape[0] * content.shape[1]
        found[entry.key] = count if count <= max_pixels else 0
    return found


def most_file_bytes(max_pixels: int) -> int:
    """Return the most bytes of a file with so many pixels."""
    return BYTES_PER_PIXEL * max_pixels + METADATA_BYTES
