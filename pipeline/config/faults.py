"""Faults of a configuration in one line each: the setting, what was expected, what came, and what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

EXPECTED = {  # by the beginning of pydantic's own name for the fault
    "string": "text, in quotes if it looks like a number or like yes or no",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "tuple": "a list, as in [a, b]",
    "dataclass": "settings, one a line, or nothing",
    "dict": "settings, one a line, or nothing",
}
UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
KIND = re.compile(r"int|float|bool|str|literal\[.*\]")  # one of several that a value may be of, which pydantic adds to its place


def one_line(error: Exception, known: Mapping[str, Any] | None = None) -> str:
    """Return the message of an error in one line, without the words of the libraries that found it.

    Args:
        error: of a configuration, or of the file it was read from.
        known: a tree of settings, whose names are suggested instead of an unknown one.
    """
    if isinstance(error, ValidationError):
        section = error.title.removesuffix("Config").lower()
        faults = [_fault(dict(fault), section, known or {}) for fault in error.errors()]
        came = dict.fromkeys((start, end) for start, _, end in faults)  # of a value that may be of several kinds, each has a fault
        wanted = {ends: dict.fromkeys(middle for start, middle, end in faults if (start, end) == ends) for ends in came}
        return "; ".join(f"{start}{' or '.join(middles)}{end}" for (start, end), middles in wanted.items())
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror.lower()}"
    return " ".join(str(error).split())


def _fault(fault: dict[str, Any], section: str, known: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the beginning of a message, what was expected, and the end."""
    place = [str(part) for part in fault["loc"]]
    if fault["type"] == "value_error":  # in our own words, which name the field
        text = str(fault["msg"]).removeprefix("Value error, ")
        above = place[0] if place else section
        return text if above in ("run", "plan") or text.startswith(above) else f"{above}: {text}", "", ""
    unknown = fault["type"] in UNKNOWN
    if place and place[-1].isdecimal() and not unknown:  # an item of a list
        place.pop()
    if KIND.fullmatch(place[-1] if place else "") and not unknown:
        place.pop()
    name, came = ".".join(place).replace("_", "-"), fault["input"]
    if unknown:
        return f"{name}: no such setting: {_suggestion(place, known)}", "", ""
    what = next((text for start, text in EXPECTED.items() if fault["type"].startswith(start)), None)
    if fault["type"] == "literal_error":
        what = str(fault["ctx"]["expected"])
        what = f"one of {what}" if " or " in what else what
    expected = what or str(fault["msg"]).removeprefix("Input should be ")
    got = "nothing: give a value, or leave the line out" if came is None else repr(came)
    return f"{name}{': ' if name else ''}expected ", expected, f"; got {got}"


def _suggestion(place: list[str], known: Mapping[str, Any]) -> str:
    for part in place[:-1]:
        known = known.get(part, {})
    near = get_close_matches(place[-1], known, n=1)
    return f"did you mean {near[0].replace('_', '-')}?" if near else "--help lists all"
