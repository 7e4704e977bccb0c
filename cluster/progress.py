"""A line of progress now and then."""

from __future__ import annotations

import logging
import time

from cluster.work import describe

log = logging.getLogger(__name__)

REPORT_SECONDS = 10.0  # at most one line in this time
PATIENCE_SECONDS = 60.0  # without anything finished


class Progress:
    """Progress of some work: the amount done, the rate, and the time left, in one line now and then."""

    def __init__(self, what: str, unit: str, total: int) -> None:
        """Begin now, with `total` units to do."""
        self.what, self.unit, self.total, self.done = what, unit, total, 0
        self.begun = self.told = self.moved = time.monotonic()

    def stalled(self, moves: bool) -> bool:
        """Return whether nothing has finished for a long time; `moves` says that something has now."""
        now = time.monotonic()
        if moves or now - self.moved > PATIENCE_SECONDS:
            stalled, self.moved = not moves, now
            return stalled
        return False

    def failed(self, name: str, units: int, error: BaseException) -> str:
        """Log that a piece has failed for good. Return the cause in one line."""
        self.done += units
        cause = describe(error)
        log.error("%s: %s failed: %s", self.what, name, cause)
        log.debug("%s: %s", name, error)  # with the traceback of the task, where it is Ray's
        return cause

    def finished(self, units: int) -> None:
        """Count finished units, and log a line if one is due or all are done."""
        self.done += units
        now = time.monotonic()
        if now - self.told > REPORT_SECONDS or self.done == self.total:
            rate = self.done / (now - self.begun)
            left = (self.total - self.done) / rate
            log.info("%s: %d of %d %s, %.3g %s/s, %.0f s left", self.what, self.done, self.total, self.unit, rate, self.unit, left)
            self.told = now
