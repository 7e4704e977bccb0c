"""How large a difference between accuracies must be to be called one."""

from __future__ import annotations

import math

from pipeline.results.run_results import VictimPair

FAR = 10.0  # points; a difference this large is never called small, however much a victim learns
ALIKE = 0.2  # of what there is to lose; shares no further apart are called alike
NEAR = 5.0  # points; accuracies no further apart are called alike


def lost(pair: VictimPair) -> float:
    """Points that the victim has less from protected images than from clean ones treated alike."""
    return pair.clean.last.mean - pair.protected.last.mean


def share_lost(pair: VictimPair, guess: float) -> float:
    """What the victim has lost of all that it could: what it learns from clean images beyond guessing."""
    return lost(pair) / (pair.clean.last.mean - guess)


def much(pair: VictimPair, guess: float) -> float:
    """Points that are much for a victim: of many classes, ten may be all that it learns."""
    return min(FAR, (pair.clean.last.mean - guess) / 2)


def error(accuracy: float, tests: int) -> float:
    """Points by which an accuracy on so many test images may miss what it would be on all there are: three standard errors."""
    return 300 * math.sqrt(accuracy / 100 * (1 - accuracy / 100) / tests)


def error_between(one: float, other: float, tests: int) -> float:
    """Points within which two accuracies on so many test images each cannot be told apart: three standard errors of their difference."""
    return math.hypot(error(one, tests), error(other, tests))
