"""The sight of networks: images through views, in a stored form, and at an input size where images have their own size."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from sep.countermeasures.registry import stored_as
from sep.methods.registry import METHODS
from sep.views import registry as views

if TYPE_CHECKING:
    from pipeline.config.schema import RunConfig

Config = TypeVar("Config", bound="RunConfig")


def packed_at_own_size(config: RunConfig) -> bool:
    """Return whether images are packed at their own size, whatever it is."""
    return config.input_size is not None and config.pack.size is None


def looked_through(config: Config) -> Config:
    """Return the configuration with the views that the networks of the method look through: its own where those given are `none` alone."""
    return replace(config, views=config.protect.kind.mix) if config.views == views.PLAIN else config


def recorded_views(config: RunConfig) -> dict[str, list[str]]:
    """Return what a stage that looks through views records of them: nothing of networks that see pictures as they are stored."""
    return {} if config.views == views.PLAIN else {"views": list(config.views)}


def recorded_input(side: int | None) -> dict[str, int]:
    """Return what a stage whose networks see images through an input size records of it."""
    return {} if side is None else {"input_size": side}


def victim_side(config: RunConfig) -> int | None:
    """Return the side in pixels of what victims see; None where they see whole images of one size."""
    return config.victim.input_size or config.input_size


def recorded_form(config: RunConfig) -> dict[str, str]:
    """Return what victims record of the form of their pictures: nothing where it is that of the release."""
    return {} if config.victim.stored == "none" else {"stored": config.victim.stored}


def check_sight(config: RunConfig) -> None:
    """Check the views, the input sizes and the form of the victims' pictures of a run against its other settings.

    Raises:
        ValueError: a view or a form is unknown, or a setting does not go with them.
    """
    try:
        views.check_mix(config.views)
    except ValueError as error:
        raise ValueError(f"views: {error}") from error
    if recorded_views(config) and "protect" in config.stages and not config.protect.kind.views:
        mix, others = " ".join(config.views), ", ".join(name for name, kind in METHODS.items() if kind.views)
        raise ValueError(f"views = {mix}, but {config.protect.method} looks through none: leave them out, or take one of {others}")
    if config.input_size is not None:
        _check_input_size(config, config.input_size)
    if config.victim.input_size is not None and config.victim.input_size < 1:
        raise ValueError(f"victim.input-size must be at least 1 pixel, got {config.victim.input_size}")
    try:
        stored_as(config.victim.stored)
    except ValueError as error:
        raise ValueError(f"victim.stored: {error}") from error


def _check_input_size(config: RunConfig, side: int) -> None:
    if side < 1:
        raise ValueError(f"input-size must be at least 1 pixel, got {side}")
    method, takes = config.protect.method, [name for name, kind in METHODS.items() if kind.own_size]
    if "protect" in config.stages and method not in takes:
        others = ", ".join(takes)
        raise ValueError(f"{method} protects only images of one size: give --pack.size N --input-size None, or take one of {others}")
    if "resize-crop" in config.views:
        raise ValueError("views = resize-crop, through which networks look anyway with an input-size: leave it out")
