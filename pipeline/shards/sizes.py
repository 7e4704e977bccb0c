"""Sizes of packed images, as the pack stage counts them: one, or those of pictures that are packed at their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def size_counts(sizes: Mapping[str, int], own_size: bool, pixels: int) -> dict[str, int]:
    """Return the counts for the manifest: height and width, the largest if there are several.

    Args:
        sizes: number of images of each size, `height x width` as in `32x48`.
        own_size: whether images are packed at their own size. Then the number of sizes, the shortest side and the pixels are counted as
            well.
        pixels: of all training images together, which may be larger than those for testing.
    """
    sides = {tuple(map(int, size.split("x"))): count for size, count in sizes.items()}
    largest = {"height": max(height for height, _ in sides), "width": max(width for _, width in sides)}
    if not own_size:
        return largest
    return {**largest, "sizes": len(sides), "shortest": min(map(min, sides)), "pixels": pixels}


def is_own_size(counts: Mapping[str, Any]) -> bool:
    """Return whether the images of a pack stage have their own size, by its counts."""
    return "sizes" in counts


def image_bytes(counts: Mapping[str, Any]) -> float:
    """Return the bytes that a decoded training image takes, by the counts of the pack stage: the mean where images have their own size."""
    if is_own_size(counts):
        return float(3 * counts["pixels"] / max(1, counts["train"]))
    return float(3 * counts["height"] * counts["width"])
