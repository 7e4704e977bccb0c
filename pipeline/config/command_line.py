"""The configuration that a command line asks for: the preset, then the YAML file, then the flags."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

from pipeline.config.class_selection import from_files
from pipeline.config.presets import from_tree
from pipeline.config.schema import RunConfig
from pipeline.config.sweep_grid import grid
from pipeline.storage.filesystems import refuse_password
from pipeline.storage.folder import absolute

Config = TypeVar("Config", bound=RunConfig)


def _read_yaml(path: str) -> Any:
    with Path(path).open() as stream:  # an open file, so that a syntax error names it
        return yaml.safe_load(stream)


def parse(arguments: Sequence[str] | None = None, program: str = "run.py") -> RunConfig:
    """Return the configuration of a run: see `parse_as`."""
    return parse_as(arguments, RunConfig, program)


def parse_as(arguments: Sequence[str] | None, kind: type[Config], program: str, preset: str = RunConfig.preset) -> Config:
    """Return the configuration of a command line: preset, then the YAML file, then the flags.

    Args:
        arguments: by default those of this process.
        kind: class of the configuration: `RunConfig` or a subclass.
        program: name of the program, for messages.
        preset: the default preset.

    A wrong command line ends the program with status 2 and a message.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # only to find the defaults of the real parser
    first.add_argument("--preset")
    first.add_argument("--config")
    known, _ = first.parse_known_args(arguments)
    try:
        tree = _read_yaml(known.config) if known.config else {}
        if not isinstance(tree, dict):
            raise ValueError(f"{known.config}: expected a mapping of settings, found {type(tree).__name__}")
        base = from_tree({"preset": preset, **tree, **({"preset": known.preset} if known.preset else {})})
        config = tyro.cli(kind, prog=program, default=kind(**vars(base)), args=arguments)
        if not config.data:
            raise ValueError(f"preset {config.preset!r} needs --data: a folder with the images (--help lists the kinds)")
        if config.tracking_uri:
            refuse_password(config.tracking_uri)
        config = dataclasses.replace(
            config,
            run=absolute(config.run),
            add=absolute(config.add) if config.add else None,
            data=config.data if config.data == "generated" else absolute(config.data),
            # Take the content: a changed file is another configuration, and the machines of a cluster need no copy of it.
            pack=dataclasses.replace(config.pack, classes=from_files(config.pack.classes)),
            protect=dataclasses.replace(config.protect, classes=from_files(config.protect.classes)),
        )
        grid(config)  # refuses an impossible sweep before anything starts
        return config
    except (ValueError, OSError, yaml.YAMLError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        raise SystemExit(2) from error
