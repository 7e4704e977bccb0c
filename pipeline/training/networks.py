"""Networks for the packed images."""

from __future__ import annotations

from pipeline.config.schema import RunConfig
from pipeline.storage.stage import Manifest
from sep import models


def build_network(name: str, pack: Manifest, input_size: int | None = None) -> models.Network:
    """Return a freshly initialised network of the right size, which normalises with the statistics of the clean training images."""
    counts = pack.counts
    side = input_size or min(counts["height"], counts["width"])
    return models.build(name, len(counts["classes"]), side, counts["mean"], counts["std"])


def check_networks(config: RunConfig, num_classes: int, height: int, width: int) -> None:
    """Check, before hours of other work, that every network in the configuration can take images of this size.

    Raises:
        ValueError: a network cannot take images of their size.
    """
    side = config.victim.input_size
    own = config.trains_surrogate and config.surrogate.trained == config.surrogate.networks  # others resize what they see
    trained = {
        "surrogate.networks": (config.surrogate.networks if own else (), (height, width)),
        "victim.networks": (config.victim.networks if "victim" in config.stages else (), (side or height, side or width)),
    }
    for setting, (names, size) in trained.items():
        for name in names:
            try:
                models.check_input_size(name, num_classes, *size)
            except ValueError as error:
                given = config.input_size or (side and setting.startswith("victim"))
                remedy = "give another --input-size" if given else "pack images of another size (--pack.size cuts squares out)"
                raise ValueError(f"{setting}: {error}. Choose another network, or {remedy}") from error
