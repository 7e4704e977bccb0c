"""What a trial leaves: a file of its own, with its curves and how often the test images of each class were taken for each class."""

from __future__ import annotations

import json
import math
from typing import Any

from pipeline.storage.folder import Folder


def write(folder: Folder, name: str, outcome: dict[str, Any]) -> None:
    """Keep the outcome of a trial."""
    folder.write(f"{name}.json", encode(outcome))


def read(folder: Folder, name: str, made_from: str) -> dict[str, Any] | None:
    """The outcome of a finished trial that was made from the same; None if there is none."""
    try:
        outcome: dict[str, Any] = json.loads(folder.read(f"{name}.json"))
    except (FileNotFoundError, ValueError):
        return None
    if not all(map(math.isfinite, outcome.get("loss_per_epoch", []))):  # left by an earlier version
        return None
    return outcome if outcome.get("made_from") == made_from else None


def encode(outcome: dict[str, Any]) -> bytes:
    """JSON with a line for each entry and for each row of a table: of a thousand classes, a line for each number would be a million."""
    lines = [f"  {json.dumps(name)}: {_lines(value)}" for name, value in sorted(outcome.items())]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _lines(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "[\n" + ",\n".join(f"    {json.dumps(row, separators=(',', ':'))}" for row in value) + "\n  ]"
    return json.dumps(value, sort_keys=True)
