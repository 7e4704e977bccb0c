"""The outcome of a trial as a file of its own: accuracies, curves over the epochs, and the confusion table of the test images."""

from __future__ import annotations

import json
import math
from typing import Any

from pipeline.storage.folder import Folder


def write(folder: Folder, name: str, outcome: dict[str, Any]) -> None:
    """Write the outcome of a trial."""
    folder.write(f"{name}.json", encode(outcome))


def read(folder: Folder, name: str, made_from: str) -> dict[str, Any] | None:
    """Return the outcome of a finished trial; None if it is missing, damaged or has another `made_from`."""
    try:
        outcome: dict[str, Any] = json.loads(folder.read(f"{name}.json"))
    except (FileNotFoundError, ValueError):
        return None
    if not all(map(math.isfinite, outcome.get("loss_per_epoch", []))):  # left by an earlier version
        return None
    return outcome if outcome.get("made_from") == made_from else None


def encode(outcome: dict[str, Any]) -> bytes:
    """Return JSON with a line for each entry and each row of a table; a line for each number would make a million of a thousand classes."""
    lines = [f"  {json.dumps(name)}: {_lines(value)}" for name, value in sorted(outcome.items())]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _lines(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "[\n" + ",\n".join(f"    {json.dumps(row, separators=(',', ':'))}" for row in value) + "\n  ]"
    return json.dumps(value, sort_keys=True)
