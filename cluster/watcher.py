"""The watcher of an executor's work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Watcher(Protocol):
    """Whoever watches work. Both calls return at once and raise nothing."""

    def begun(self, what: str) -> None:
        """Note that the work of this name has begun."""

    def told(self, what: str, metrics: Mapping[str, Any]) -> None:
        """Note an epoch of a training or a report of a trial, by its name, or the `units` of a piece of the work."""
