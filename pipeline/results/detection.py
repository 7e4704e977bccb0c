"""The measurements of detect.py, in words: how well detectors tell the release from clean images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.storage.records import counted

GUESSING = 0.5  # the area of a detector that guesses
SURE = 3  # standard errors above it: with several detectors, one is beyond two by chance now and then


@dataclass(frozen=True)
class Detector:
    """The outcome of one detector, on so many judged images: see `pipeline.operations.roc.Area`."""

    name: str
    auc: float
    error: float
    protected: int
    clean: int
    seconds: float

    @property
    def tells(self) -> bool:
        """True if the detector does better than guessing."""
        return self.auc - SURE * self.error > GUESSING

    @property
    def figure(self) -> str:
        """The area and its standard error."""
        return f"{self.auc:.3f} ± {self.error:.3f}"


@dataclass(frozen=True)
class Detection:
    """The outcome of all detectors, in the order in which they were measured."""

    detectors: tuple[Detector, ...]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Detection:
        """Read the record.

        Raises:
            KeyError, TypeError: the record is damaged.
        """
        return cls(tuple(Detector(**row) for row in record["detectors"]))

    @property
    def best(self) -> Detector:
        """The detector that tells the two apart best."""
        return max(self.detectors, key=lambda each: each.auc)

    @property
    def line(self) -> str:
        """The outcome in one line."""
        best = self.best
        on = f"AUC {best.figure} on {best.protected} protected and {best.clean} clean images, where guessing has {GUESSING}"
        telling, every = sum(each.tells for each in self.detectors), counted(len(self.detectors), "detector")
        outcome = f"Told apart from clean images by {telling} of {every}" if telling else f"Not told apart from clean images by {every}"
        return f"{outcome}; the best, {best.name}, has {on}."

    def __str__(self) -> str:
        """Return a table, and then the line."""
        rows = [f"  {each.name:<22}{each.figure}   {each.protected:>5} protected, {each.clean:>5} clean" for each in self.detectors]
        return "\n".join([f"  {'detector':<22}AUC", *rows, "", self.line])
