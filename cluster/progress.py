"""The progress of some work: the amount done, the rate, and the time left, counted from the first result."""

from __future__ import annotations

import logging
import time

from cluster.display import duration, follow
from cluster.work import describe

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 60.0  # without anything finished


class Progress:
    """Progress of pieces of work."""

    def __init__(self, what: str, unit: str, total: int) -> None:
        """Begin now, with `total` units to do."""
        self.what, self.unit, self.total, self.done = what, unit, total, 0
        self.begun = self.moved = time.monotonic()
        self.first: tuple[float, int] | None = None  # when the first result came, and how much was done then
        follow(self)

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
        """Count finished units, and log a line when all are done."""
        self.done += units
        self.first = self.first or (time.monotonic(), self.done)
        if self.done == self.total:
            log.info("%s: %s", self.what, self._state())

    def rate(self) -> float:
        """Return the units per second since the first result, as the time before it is that of a start."""
        since, before = self.first if self.first and self.done > self.first[1] else (self.begun, 0)
        return (self.done - before) / max(time.monotonic() - since, 1e-9)

    def share(self) -> float:
        """Return how much is done, from 0 to 1."""
        return self.done / max(1, self.total)

    def line(self) -> str:
        """Return the state in one line; nothing once all is done."""
        return "" if self.done >= self.total else f"{self.what}: {self._state()}"

    def _state(self) -> str:
        counted = f"{self.done:,} of {self.total:,} {self.unit}"
        if not self.done:
            return f"{counted}, {duration(time.monotonic() - self.begun)} so far"
        rate = self.rate()
        left = f", {duration((self.total - self.done) / rate)} left" if self.done < self.total else ""
        return f"{counted}, {rate:,.3g} {self.unit}/s{left}"


class Epochs:
    """Progress of one or more trainings, each counting its epochs: one line for all of them."""

    def __init__(self, what: str, epochs: dict[str, int], at_once: int = 1, unit: str = "epoch") -> None:
        """Begin now.

        Args:
            what: for the line.
            epochs: of each training, by name.
            at_once: trainings that run at a time.
            unit: the word for an epoch.
        """
        self.what, self.epochs, self.at_once, self.unit, self.note = what, epochs, at_once, unit, ""
        self.seen: dict[str, int] = {}  # epochs that each has done
        self.begun = time.monotonic()
        self.first: tuple[float, int] | None = None
        follow(self)

    def reached(self, name: str, done: int, note: str = "") -> None:
        """Note that a training has done so many epochs; the note says how it fares."""
        self.seen[name], self.note = done, note
        log.debug("%s: %s, %s %d of %d", self.what, name, self.unit, done, self.epochs[name])
        self.first = self.first or (time.monotonic(), sum(self.seen.values()))

    def __enter__(self) -> Epochs:
        """Show the state in the block."""
        return self

    def __exit__(self, *failure: object) -> None:
        """Show nothing more, however the block ended."""
        self.seen = dict(self.epochs)

    def share(self) -> float:
        """Return how much is done, from 0 to 1."""
        return sum(self.seen.values()) / max(1, sum(self.epochs.values()))

    def line(self) -> str:
        """Return the state in one line; nothing once all is done."""
        total, done = sum(self.epochs.values()), sum(self.seen.values())
        if done >= total:
            return ""
        ended = sum(self.seen.get(name, 0) >= epochs for name, epochs in self.epochs.items())
        parts = [f"{self.unit} {done} of {total}"]
        if len(self.epochs) > 1:
            parts = [f"{ended} of {len(self.epochs)} done", f"{min(self.at_once, len(self.epochs) - ended)} running"]
        parts += [self.note] if self.note else []
        now = time.monotonic()
        if self.first and done > self.first[1]:
            parts.append(f"{duration((total - done) * (now - self.first[0]) / (done - self.first[1]))} left")
        else:
            parts.append(f"{duration(now - self.begun)} so far")
        return f"{self.what}: {', '.join(parts)}"
