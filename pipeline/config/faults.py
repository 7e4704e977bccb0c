"""Faults of a configuration in one line each: the setting, what was expected, what came, and what to do."""

from __future__ import annotations

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


def one_line(error: Exception, known: Mapping[str, Any] | None = None) -> str:
    """Return the message of an error in one line, without the words of the libraries that found it.

    Args:
        error: of a configuration, or of the file it was read from.
        known: a tree of settings, whose names are suggested in the place of an unknown one.
    """
    if isinstance(error, ValidationError):
        section = error.title.removesuffix("Config").lower()
        return "; ".join(dict.fromkeys(_fault(dict(fault), section, known or {}) for fault in error.errors()))
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror.lower()}"
    return " ".join(str(error).split())


def _fault(fault: dict[str, Any], section: str, known: Mapping[str, Any]) -> str:
    place = [str(part) for part in fault["loc"]]
    if fault["type"] == "value_error":  # in our own words, which name the field
        text = str(fault["msg"]).removeprefix("Value error, ")
        above = place[0] if place else section
        return text if above in ("run", "plan") or text.startswith(above) else f"{above}: {text}"
    unknown = fault["type"] in UNKNOWN
    if place and place[-1].isdecimal() and not unknown:  # an item of a list
        place.pop()
    name, came = ".".join(place).replace("_", "-"), fault["input"]
    if unknown:
        return f"{name}: no such setting: {_suggestion(place, known)}"
    what = next((text for start, text in EXPECTED.items() if fault["type"].startswith(start)), None)
    if fault["type"] == "literal_error":
        what = f"one of {fault['ctx']['expected']}"
    expected = what or str(fault["msg"]).removeprefix("Input should be ")
    got = "nothing: give a value, or leave the line out" if came is None else repr(came)
    return f"{name}{': ' if name else ''}expected {expected}; got {got}"


def _suggestion(place: list[str], known: Mapping[str, Any]) -> str:
    for part in place[:-1]:
        known = known.get(part, {})
    near = get_close_matches(place[-1], known, n=1)
    return f"did you mean {near[0].replace('_', '-')}?" if near else "--help lists all"
