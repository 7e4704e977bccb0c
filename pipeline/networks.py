"""Networks for the images that were packed."""

from __future__ import annotations

from pipeline.stage import Manifest
from sep import models


def build_network(name: str, pack: Manifest) -> models.Network:
    """A freshly initialised network of the right size, normalising with the statistics of the clean training images."""
    counts = pack.counts
    side = min(counts["height"], counts["width"])
    return models.build(name, len(counts["classes"]), side, counts["mean"], counts["std"])
