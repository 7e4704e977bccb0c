"""What goes together with images of their own size, which networks see through an input size."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.config.schema import RunConfig


def packed_at_own_size(config: RunConfig) -> bool:
    """Return whether images are packed at their own size, whatever it is."""
    return config.input_size is not None and config.pack.size is None


def recorded_input(config: RunConfig) -> dict[str, int]:
    """Return what a stage whose networks see images through the input size records of it."""
    return {} if config.input_size is None else {"input_size": config.input_size}


def check_own_size(config: RunConfig) -> None:
    """Check the settings of a run against its input size, if it has one.

    Raises:
        ValueError: a setting does not go with it.
    """
    if config.input_size is None:
        return
    if config.input_size < 1:
        raise ValueError(f"input-size must be at least 1 pixel, got {config.input_size}")
