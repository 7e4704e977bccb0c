"""What a release took: seconds that mean the same of every method, and what they mean."""

from __future__ import annotations

from pipeline.results import Finished
from pipeline.storage.stage import Manifest
from sep.methods.registry import METHODS

EXPLAINED = (
    "Gradients are those of all images together. Surrogate is the training of the networks whose checkpoints a method reads, one for "
    "all points of a sweep, and – where it reads none. Crafting includes a network that a method trains for itself, as that of "
    "error-minimising noise, and is told at the rate of its last start, if that crafted anything. Surrogate and victims are told as "
    "long as their last start took, victims all together."
)


def crafting_seconds(protect: Manifest) -> float | None:
    """Seconds that crafting takes at the rate of the last start, which may have crafted only a part; None where it crafted nothing.

    With those that were spent before the first shard on training against the noise, or on looking for pixels, where a method does.
    """
    rate = protect.timing.get("images_per_second", 0)
    return float(protect.timing.get("preparation_seconds", 0) + protect.counts["protected"] / rate) if rate else None


def surrogate_seconds(found: Finished) -> float | None:
    """Seconds that training took of the networks whose checkpoints the method reads; None where it reads none."""
    reads = "protect" not in found or METHODS[found["protect"].counts["method"]].checkpoints != 0
    return found["surrogate"].seconds if "surrogate" in found and reads else None
