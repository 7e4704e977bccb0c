"""The splits of a release: what is protected and published, and what stays at home."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.config.schema import SPLITS


def sets_aside(packed: Mapping[str, Any]) -> bool:
    """Return whether the test images were set aside by `--pack.test-fraction`, from what the pack stage was asked for.

    Their owner publishes them like the others: the source has no splits. Victims are measured on their clean copies.
    """
    return bool(packed["pack"].get("test_fraction"))


def released_splits(splits: tuple[str, ...] | list[str], packed: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the splits whose images are protected.

    Args:
        splits: `protect.splits`, which decides for sources that come with test images.
        packed: what the pack stage was asked for.
    """
    return tuple(split for split in SPLITS if split in splits or sets_aside(packed))
