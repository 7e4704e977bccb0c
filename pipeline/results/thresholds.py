"""Thresholds: how large a difference between accuracies must be to be called one."""

from __future__ import annotations

import math

from pipeline.results.victims import VictimPair

FAR = 10.0  # points; a difference this large is never called small, however much a victim learns
ALIKE = 0.2  # share of what a victim could lose; shares no further apart are called alike
NEAR = 5.0  # points; accuracies no further apart are called alike


def lost(pair: VictimPair) -> float:
    """Return the points that a victim loses when it is trained on protected images instead of clean ones treated alike."""
    return pair.clean.last.mean - pair.protected.last.mean


def share_lost(pair: VictimPair, guess: float) -> float:
    """Return the share that a victim loses of all it could lose, which is what it learns from clean images beyond guessing."""
    return lost(pair) / (pair.clean.last.mean - guess)


def much(pair: VictimPair, guess: float) -> float:
    """Return how many points are a large loss for a victim: with many classes, ten may be all that it learns."""
    return min(FAR, (pair.clean.last.mean - guess) / 2)


def error(accuracy: float, tests: int) -> float:
    """Return three standard errors, in points, of an accuracy on so many test images."""
    return 300 * math.sqrt(accuracy / 100 * (1 - accuracy / 100) / tests)


def error_between(one: float, other: float, tests: int) -> float:
    """Return three standard errors, in points, of the difference between two accuracies on so many test images each."""
    return math.hypot(error(one, tests), error(other, tests))


def interval(accuracy: float, tests: int) -> tuple[float, float]:
    """Return the 95 % interval of an accuracy on so many test images, in percent (Wilson 1927): it stays within 0 and 100.

    Several seeds are measured on the same images, so that they make it no narrower.
    """
    share, z = accuracy / 100, 1.96
    middle, half = share + z * z / (2 * tests), z * math.sqrt(share * (1 - share) / tests + z * z / (4 * tests * tests))
    return 100 * (middle - half) / (1 + z * z / tests), 100 * (middle + half) / (1 + z * z / tests)
