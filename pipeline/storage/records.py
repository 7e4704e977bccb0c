"""Values as bytes, digests and words: the same wherever a run writes, compares or prints them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.storage.layout import RELEASE

SHOWN = 10  # names listed in a message


def to_json(value: Any) -> bytes:
    """Return readable JSON with sorted keys: the same bytes for the same value.

    A list of plain values takes one line, so that a table has a line for each row and not for each number.
    """
    return (_lines(value, "\n") + "\n").encode()


def _lines(value: Any, start: str) -> str:
    """Return JSON. Every line but the first begins with `start`, which is a line break and the indentation."""
    inner = start + "  "
    if isinstance(value, dict) and value:
        entries = [f"{json.dumps(str(name))}: {_lines(value[name], inner)}" for name in sorted(value)]
        return f"{{{inner}{f',{inner}'.join(entries)}{start}}}"
    if isinstance(value, (list, tuple)) and any(isinstance(entry, (dict, list, tuple)) for entry in value):
        return f"[{inner}{f',{inner}'.join(_lines(entry, inner) for entry in value)}{start}]"
    return json.dumps(value)


def digest(value: Any) -> str:
    """Return the digest of a value of JSON types."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return `{"a": {"b": 1}}` as `{"a.b": 1}`, with the names that the fields have on the command line."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def release_of(record: Mapping[str, Any]) -> str:
    """Return the digest of the release that the record of a command is about, which earlier versions wrote as `release`.

    Raises:
        KeyError: it says none.
    """
    found: str = record[RELEASE if RELEASE in record else "release"]
    return found


def sha256(data: bytes) -> str:
    """Return the digest of a file's bytes."""
    return hashlib.sha256(data).hexdigest()


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, `1 fault` or `3 faults`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def shown(values: Sequence[object], most: int = SHOWN) -> str:
    """Return a list for a message, cut to a readable length."""
    return ", ".join(str(value) for value in values[:most]) + (f" and {len(values) - most} more" if len(values) > most else "")
