"""The share of their time for which trainings wait for images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def waiting_percent(times: Sequence[Mapping[str, Any]]) -> float:
    """Return the percentage of the time of epochs or trainings for which they waited for images, as far as they say so."""
    waiting, seconds = (sum(float(each.get(name, 0)) for each in times) for name in ("waiting_seconds", "seconds"))
    return 100 * waiting / (seconds or 1)  # a training that another one's result stands for took no time
