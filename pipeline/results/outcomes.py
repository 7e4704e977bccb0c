"""The outcome of each victim beside the same victim trained on clean images: what findings, verdict and comparison judge by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum

from pipeline.results.thresholds import ALIKE, FAR, error, lost, much, share_lost
from pipeline.results.victims import VictimPair


class Outcome(IntEnum):
    """The effect of a countermeasure on the protection."""

    HOLDS = 0
    WEAKENED = 1
    UNDONE = 2
    UNKNOWN = 3  # even clean images teach the victim hardly more than guessing


WORST_FIRST = (Outcome.UNDONE, Outcome.WEAKENED, Outcome.HOLDS, Outcome.UNKNOWN)


def least(guess: float, tests: int) -> float:
    """Return the accuracy on clean images, in percent, below which a victim has nothing to lose.

    Of one class in ten that is 20 %, of one in a hundred 2 %.
    """
    return guess + max(error(guess, tests), min(FAR, guess))


def unaided(measured: Sequence[VictimPair], guess: float, tests: int) -> dict[str, VictimPair]:
    """Return the victims without countermeasure that the protection works against at all, by network."""
    plain = (pair for pair in measured if pair.clean.countermeasure == "none")
    enough = least(guess, tests)
    return {pair.clean.network: pair for pair in plain if pair.clean.last.mean >= enough and lost(pair) >= much(pair, guess)}


def outcome(pair: VictimPair, plain: Mapping[str, VictimPair], guess: float, tests: int) -> Outcome:
    """Return how a victim came out, beside the victim of its network without countermeasure: see `unaided`.

    Where that one is not among `plain`, the protection holds if it takes nearly all that the victim could lose.
    """
    if pair.clean.last.mean < least(guess, tests):
        return Outcome.UNKNOWN
    if lost(pair) < much(pair, guess):
        return Outcome.UNDONE
    usual = share_lost(plain[pair.clean.network], guess) if pair.clean.network in plain else 1.0
    return Outcome.HOLDS if share_lost(pair, guess) >= usual - ALIKE else Outcome.WEAKENED


def outcomes(measured: Sequence[VictimPair], guess: float, tests: int) -> dict[str, tuple[Outcome, VictimPair]]:
    """Return the outcome of every countermeasure, and the victim that decides it: the network with which the protection does worst.

    Networks against which the protection does not work at all, without any countermeasure, are not looked at. A network that gets less
    than `least` percent from clean images has nothing to lose: it speaks for a countermeasure only where all networks are such.

    Args:
        measured: victims of the release alone.
        guess: what guessing gets right, in percent.
        tests: number of test images that they were measured on.
    """
    plain = unaided(measured, guess, tests)
    countered: dict[str, list[VictimPair]] = {}
    unaided_too = {pair.clean.network for pair in measured if pair.clean.countermeasure == "none"}
    for pair in measured:
        if (pair.clean.network in plain or pair.clean.network not in unaided_too) and pair.clean.countermeasure != "none":
            countered.setdefault(pair.clean.countermeasure, []).append(pair)
    judged = {name: [(outcome(pair, plain, guess, tests), pair) for pair in pairs] for name, pairs in countered.items()}
    return {name: min(pairs, key=lambda each: (WORST_FIRST.index(each[0]), lost(each[1]))) for name, pairs in judged.items()}


def regained(pair: VictimPair, guess: float) -> float | None:
    """Return the percentage of what was lost that renaming the predicted classes regains; None where that, or what was lost, is nothing.

    It is 100 at most.
    """
    gain, far = pair.protected.relabelled.mean - pair.protected.last.mean, much(pair, guess)
    if lost(pair) <= 0 or gain < far or pair.protected.relabelled.mean < guess + far:
        return None
    return min(100.0, 100 * gain / lost(pair))
