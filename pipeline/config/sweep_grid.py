"""Points of a sweep, `--sweep protect.steps=5,10 protect.checkpoints=1,5`: every combination is a separate configuration."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from pipeline.config.class_selection import from_files
from pipeline.config.faults import one_line
from pipeline.config.schema import ProtectConfig, RunConfig, StageName
from pipeline.storage.layout import SHARED
from pipeline.storage.records import digest

SECTION = "protect"  # all points share the stages before it, and victims have a matrix of their own
UNSAFE = re.compile(r"[^A-Za-z0-9.+-]")  # in the name of a folder
LONGEST_VALUE = 60  # characters of one value in that name; the value may list fifty classes
LONGEST_NAME = 200  # characters of the whole name; filesystems take 255
DIGEST = 10  # characters of the digest that replaces the rest of a longer name
SHOWN = 3  # impossible points in a message


@dataclass(frozen=True)
class GridPoint:
    """One combination: the name of its folder, the swept settings as JSON types, and its configuration."""

    name: str
    settings: dict[str, Any]
    config: RunConfig


def grid(config: RunConfig) -> list[GridPoint]:
    """Return the points of the sweep that the configuration asks for; none without a sweep.

    Their names do not depend on the order of fields or values.

    Raises:
        ValueError: a field cannot be swept, a value does not fit it, or combinations cannot be crafted; the message names them.
    """
    if not config.sweep:
        return []
    if config.add:
        raise ValueError("--sweep and --add do not go together: a sweep protects the images of a run anew, an addition goes with a release")
    values = _parsed(config.sweep)
    found, impossible = [], []
    for combination in product(*values.values()):
        chosen = dict(zip(values, combination, strict=True))
        name = _shortened("_".join(f"{field}-{UNSAFE.sub('-', _shortened(_text(value)))}" for field, value in chosen.items()), LONGEST_NAME)
        told = {f"{SECTION}.{field}": list(value) if isinstance(value, tuple) else value for field, value in chosen.items()}
        try:
            protect = replace(config.protect, **chosen)
            point = replace(config, sweep=(), protect=protect)
        except ValueError as error:
            impossible.append(f"{name}: {one_line(error)}")
        else:
            found.append(GridPoint(name, told, point))
    if impossible:
        more = f"; and {len(impossible) - SHOWN} more" if len(impossible) > SHOWN else ""
        raise ValueError(f"--sweep: points that cannot be: {'; '.join(impossible[:SHOWN])}{more}")
    idle = [field for field in values if all(field in point.config.protect.idle for point in found)]
    if idle:
        methods = ", ".join(dict.fromkeys(point.config.protect.method for point in found))
        raise ValueError(f"--sweep: {', '.join(idle)}: not read by {methods}: leave it out, or take another --protect.method")
    if len({point.name for point in found}) < len(found):
        raise ValueError(f"--sweep: values must differ as names of folders; got {', '.join(point.name for point in found)}")
    return found


def swept_fields(config: RunConfig) -> tuple[str, ...]:
    """Return the fields that points of the sweep differ in, as `protect.steps`, in the order of the configuration."""
    return tuple(f"{SECTION}.{field}" for field in _parsed(config.sweep))


def _parsed(asked: Sequence[str]) -> dict[str, list[Any]]:
    """Return the values of each swept field, in the order of the fields of the configuration."""
    kinds = get_type_hints(ProtectConfig)
    known = [field.name for field in fields(ProtectConfig)]
    values: dict[str, list[Any]] = {}
    for text in asked:
        name, _, listed = text.partition("=")
        section, _, field = name.replace("-", "_").partition(".")
        if section != SECTION or field not in known:
            choices = ", ".join(f"{SECTION}.{other.replace('_', '-')}" for other in known)
            raise ValueError(f"--sweep: {name!r} cannot be swept; what can is {choices}")
        if field in values:
            raise ValueError(f"--sweep: {name} is given twice: give all its values at once, {name}=5,10")
        values[field] = [_value(name, kinds[field], value) for value in listed.split(",")]
        if len(set(values[field])) < len(values[field]):
            raise ValueError(f"--sweep: each value once; got {text}")
    return {field: values[field] for field in known if field in values}


def _value(name: str, kind: Any, text: str) -> Any:
    """Return a value as the flag of that name takes it; several values of one flag are joined by `+`."""
    several = get_origin(kind) is tuple
    try:
        value = TypeAdapter(kind).validate_python(text.split("+") if several else text)
    except ValidationError as error:
        raise ValueError(f"--sweep: {name} takes values separated by commas, and not {text!r}: {one_line(error)}") from error
    return from_files(value) if name == f"{SECTION}.classes" else value


def _text(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _shortened(text: str, longest: int = LONGEST_VALUE) -> str:
    """Return the text, or its beginning and a digest of the whole, so that texts that differ later on still differ."""
    return text if len(text) <= longest else f"{text[: longest - DIGEST - 1]}-{digest(text)[:DIGEST]}"


def shared_stages(config: RunConfig) -> tuple[StageName, ...]:
    """Return the shared stages that at least one point needs. The configuration of the sweep is not a point itself."""
    needed = {name for asked in grid(config) for name in asked.config.needed_stages}
    return tuple(name for name in SHARED if name in needed)
