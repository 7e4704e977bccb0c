"""What goes together with images of their own size, which networks see through an input size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sep.countermeasures.registry import plan
from sep.methods.registry import METHODS

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
    method, takes = config.protect.method, [name for name, kind in METHODS.items() if kind.own_size]
    if "protect" in config.stages and method not in takes:
        raise ValueError(f"{method} cannot protect images of many sizes with an input-size: give --pack.size N, or take {', '.join(takes)}")
    if "resize-crop" in config.views:
        raise ValueError("views = resize-crop, through which networks look anyway with an input-size: leave it out")
    for name in config.victim.countermeasures if "victim" in config.stages else ():
        if any(part.fitted for part in plan(name).parts):
            raise ValueError(f"victim.countermeasures: {name} is fitted to images of one size: leave it out, or give --pack.size N alone")
