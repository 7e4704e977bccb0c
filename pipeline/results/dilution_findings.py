"""The gain from protected images for an adversary who has some of them clean, beyond what the clean ones give alone, in plain sentences.

Such a victim is not compared with one whose images are all clean. It may owe everything to its clean images, and then the protection of
the others holds (Huang et al. 2021, "Unlearnable Examples").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.results.thresholds import ALIKE, NEAR, error_between, lost
from pipeline.results.victims import CleanShare, TrialStats, VictimPair


def on_diluted(measured: Sequence[VictimPair], guess: float, tests: int) -> tuple[str, ...]:
    """Return a sentence for each dilution, about the network to which the protected images add most.

    Args:
        measured: all victims.
        guess: what guessing gets right, in percent.
        tests: number of test images that they were measured on.
    """
    diluted: dict[tuple[str, CleanShare], list[VictimPair]] = {}
    alone: dict[tuple[str, str], TrialStats] = {}
    for pair in measured:
        network, name = pair.clean.network, pair.clean.countermeasure
        if pair.share and pair.share.alone:
            alone[network, name] = pair.clean
        elif pair.share:
            diluted.setdefault((name, pair.share), []).append(pair)
    return tuple(_sentence(name, share, pairs, alone, guess, tests) for (name, share), pairs in diluted.items())


def _sentence(
    name: str, share: CleanShare, pairs: list[VictimPair], controls: Mapping[tuple[str, str], TrialStats], guess: float, tests: int
) -> str:
    """Say what one dilution gives; `controls` are the victims of clean shares alone, by network and countermeasure."""
    start = f"If an adversary also has {share.percent} % of the protected images clean ({name}),"
    beside = []
    for pair in pairs:
        own = controls.get((pair.clean.network, share.control))
        if own and own.seeds == pair.protected.seeds:  # a seed also decides which images are clean
            beside.append((pair, own.last.mean))
    if not beside:
        best = max(pairs, key=lambda pair: pair.protected.last.mean)
        return (
            f"{start} {best.clean.network} gets {best.protected.last.mean:.1f} % right; how much of that those clean images give alone is "
            f"not known without {share.control} over the same seeds."
        )
    pair, alone = max(beside, key=lambda each: (_tells(each[0], each[1], guess, tests), each[0].protected.last.mean - each[1]))
    return (
        f"{start} {pair.clean.network} gets {pair.protected.last.mean:.1f} % right, compared with {alone:.1f} % from those clean images "
        f"alone and {pair.clean.last.mean:.1f} % from all images clean: {_added(pair, alone, guess, tests)}."
    )


def _tells(pair: VictimPair, alone: float, guess: float, tests: int) -> bool:
    """Return whether the clean share alone leaves something that the other images could add."""
    clean = pair.clean.last.mean
    return clean - alone > max(error_between(alone, clean, tests), min(NEAR, (clean - guess) / 2))


def _added(pair: VictimPair, alone: float, guess: float, tests: int) -> str:
    """Say what the protected images add to the accuracy that the clean share gives alone."""
    mixed, clean = pair.protected.last.mean, pair.clean.last.mean
    added, all_clean = mixed - alone, clean - alone
    little = max(error_between(alone, mixed, tests), ALIKE * all_clean)
    if added < -little:
        return f"the protected images take {-added:.1f} points away"
    if not _tells(pair, alone, guess, tests):
        return "the share alone is nearly as good as all of them, so nothing can be said of the protected images"
    if added <= little:
        return "the protected images add next to nothing"
    said = f"the protected images add {added:.1f} of the {all_clean:.1f} points that they would add if they were clean"
    undone = lost(pair) <= max(error_between(mixed, clean, tests), ALIKE * all_clean)
    return f"{said}, so beside clean images their protection is undone" if undone else said
