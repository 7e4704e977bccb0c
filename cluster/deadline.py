"""The deadline after which no further piece of work begins."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass


class TimeIsUp(RuntimeError):
    """The time given with `--minutes` has passed. Finished pieces stay, and the same command goes on from them."""


@dataclass(frozen=True)
class Deadline:
    """A moment after which no piece of work (shard, epoch, trial) is begun. Safe to send to a worker.

    Attributes:
        at: seconds since the epoch, as `time.time` counts them; infinite for no limit.
    """

    at: float = math.inf

    @classmethod
    def after(cls, minutes: float | None) -> Deadline:
        """Return the deadline that many minutes from now; without minutes, one that never passes."""
        return cls() if minutes is None else cls(time.time() + 60 * minutes)

    def passed(self) -> bool:
        """Return whether it is too late to begin anything."""
        return time.time() >= self.at

    def check(self) -> None:
        """Do nothing before the deadline.

        Raises:
            TimeIsUp: it has passed.
        """
        if self.passed():
            raise TimeIsUp


NEVER = Deadline()
