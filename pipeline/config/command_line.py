"""The configuration that a command line asks for: the preset, then the YAML file, then the flags."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import TypeVar

from pipeline.config import flags, settings_file
from pipeline.config.class_selection import from_files
from pipeline.config.faults import one_line
from pipeline.config.initial import located
from pipeline.config.presets import from_tree
from pipeline.config.schema import RunConfig
from pipeline.config.sweep_grid import grid
from pipeline.config.tracking_uri import checked
from pipeline.storage.folder import absolute

Config = TypeVar("Config", bound=RunConfig)
OWN_IMAGES = "photos-small"  # the preset where images are named and no preset is


def parse(arguments: Sequence[str] | None = None, program: str = "run.py") -> RunConfig:
    """Return the configuration of a run: see `parse_as`."""
    return parse_as(arguments, RunConfig, program)


def parse_as(arguments: Sequence[str] | None, kind: type[Config], program: str, preset: str = RunConfig.preset) -> Config:
    """Return the configuration of a command line: preset, then the YAML file, then the flags.

    Args:
        arguments: by default those of this process.
        kind: class of the configuration: `RunConfig` or a subclass.
        program: name of the program, for messages.
        preset: the default preset; of images that are not generated, `OWN_IMAGES` stands in for the quickstart.

    A wrong command line ends the program with status 2 and a message.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # only to find the defaults of the real parser
    for flag in ("--preset", "--config", "--data"):
        first.add_argument(flag, nargs="?")  # one without a value is refused below
    known, _ = first.parse_known_args(arguments)
    try:
        if known.config == "":
            raise ValueError("config: expected the path of a file; got ''")
        tree = settings_file.read(known.config) if known.config else {}
        usual = _usual(preset, tree.get("data") if known.data is None else known.data)
        try:
            base = from_tree({"preset": usual, **tree, **({} if known.preset is None else {"preset": known.preset})})
        except ValueError as error:
            raise ValueError(f"{known.config}: {error}" if known.config else str(error)) from error
        config = flags.read(kind, program, arguments, kind(**vars(base)))
        if not config.data:
            raise ValueError(f"preset {config.preset!r} needs --data: a folder with the images (--help lists the kinds)")
        config = dataclasses.replace(
            config,
            tracking_uri=None if config.tracking_uri is None else checked(config.tracking_uri),
            run=_absolute("run", config.run),
            add=None if config.add is None else _absolute("add", config.add),
            data=config.data if config.data == "generated" else absolute(config.data),
            # Take the content: a changed file is another configuration, and the machines of a cluster need no copy of it.
            pack=dataclasses.replace(config.pack, classes=from_files(config.pack.classes)),
            protect=dataclasses.replace(config.protect, classes=from_files(config.protect.classes)),
            surrogate=dataclasses.replace(config.surrogate, initial=config.surrogate.initial and located(config.surrogate.initial)),
            victim=dataclasses.replace(config.victim, initial=located(config.victim.initial)),
        )
        _check_places(config)
        grid(config)  # refuses an impossible sweep before anything starts
        return config
    except (ValueError, OSError) as error:
        print(f"{program}: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from error


def _usual(preset: str, data: object) -> str:
    """Return the default preset for these images: the quickstart is for generated ones, which are small and easy to learn."""
    return OWN_IMAGES if preset == RunConfig.preset and data not in (None, "", RunConfig.data) else preset


def _absolute(name: str, uri: str) -> str:
    try:
        return absolute(uri)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _check_places(config: RunConfig) -> None:
    """Refuse a run inside a source: the next scan would take its files for images.

    Raises:
        ValueError: it is there.
    """
    for flag, source in (("--data", config.data), ("--add", config.add)):
        if source and source != "generated":
            inner, outer = (place if "://" in place else os.path.realpath(place) for place in (config.run, source))
            if f"{inner.rstrip('/')}/".startswith(f"{outer.rstrip('/')}/"):
                raise ValueError(f"--run {config.run} lies in {flag} {source}, and its files would be taken for images: give another --run")
