"""Marks on the fields of the schema: settings that do not decide, by their value, what a run is.

A field is marked where it is declared, `workers: Annotated[int | None, Mark.SPEED]`. Stage sections, the identity of a run in MLflow,
printed commands and cards all read the marks, so that a new field needs no second list.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Annotated, Any, get_args, get_origin, get_type_hints


class Mark(Enum):
    """A reason why a setting may differ between two starts of the same run.

    Attributes:
        SPEED: the setting decides how fast the work is done, and on how much of the machine.
        START: the setting says what one start of the command does.
        LIMIT: the setting decides by what follows from it alone, such as whether images stream, which stages record.
    """

    SPEED = "speed"
    START = "start"
    LIMIT = "limit"


def marked(config: type, *marks: Mark) -> tuple[str, ...]:
    """Return the names of the settings with one of these marks (with any mark if none is given), as in `protect.batch_size`."""
    return tuple(_marked(config, set(marks or Mark), ""))


def _marked(config: type, marks: set[Mark], prefix: str) -> Iterator[str]:
    hints = get_type_hints(config, include_extras=True)
    for field in fields(config):
        hint, *extras = get_args(hints[field.name]) if get_origin(hints[field.name]) is Annotated else (hints[field.name],)
        if is_dataclass(hint):
            assert isinstance(hint, type)
            yield from _marked(hint, marks, f"{prefix}{field.name}.")
        elif any(extra in marks for extra in extras if isinstance(extra, Mark)):
            yield f"{prefix}{field.name}"


def without(tree: dict[str, Any], names: Collection[str], section: str = "") -> dict[str, Any]:
    """Return a tree of settings without the named ones; `section` is the prefix of their names, as in `protect.`."""
    return {
        name: without(value, names, f"{section}{name}.") if isinstance(value, dict) else value
        for name, value in tree.items()
        if f"{section}{name}" not in names
    }
