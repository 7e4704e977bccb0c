"""What protected images add where a stranger has some of them clean, beyond what those clean ones give alone, in plain sentences.

Such a victim is not held against one that has all images clean: it may owe everything to its clean images, and then the protection of
the others holds (Huang et al. 2021, "Unlearnable Examples").
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.results.run_results import TrialStats, VictimPair
from pipeline.results.thresholds import ALIKE, NEAR, error_between, lost
from sep.countermeasures.registry import CLEAN_ONLY, DILUTED, clean_share, control_of, plan

START = "Where a stranger has"


def on_diluted(measured: list[VictimPair], guess: float, tests: int) -> list[str]:
    """A sentence for each dilution, by the network to which the protected images add most.

    Args:
        measured: all victims.
        guess: what guessing gets right, in percent.
        tests: how many test images they were measured on.
    """
    diluted: dict[str, list[VictimPair]] = {}
    alone: dict[tuple[str, str], TrialStats] = {}
    for pair in measured:
        network, name = pair.clean.network, pair.clean.countermeasure
        if clean_share(name) == DILUTED:
            diluted.setdefault(name, []).append(pair)
        elif clean_share(name) == CLEAN_ONLY:
            alone[network, name] = pair.clean
    return [_sentence(name, pairs, alone, guess, tests) for name, pairs in diluted.items()]


def _sentence(name: str, pairs: list[VictimPair], controls: Mapping[tuple[str, str], TrialStats], guess: float, tests: int) -> str:
    """What one dilution gives; `controls` are the victims of clean shares, by network and countermeasure."""
    start, control = f"{START} {plan(name).clean_percent} % of the protected images clean ({name})", control_of(name)
    beside = []
    for pair in pairs:
        own = controls.get((pair.clean.network, control))
        if own and own.seeds == pair.protected.seeds:  # a seed decides as well which images are clean
            beside.append((pair, own.last.mean))
    if not beside:
        best = max(pairs, key=lambda pair: pair.protected.last.mean)
        got = f"{best.clean.network} gets {best.protected.last.mean:.1f} % right"
        return f"{start}, {got}; how much of that those clean images give alone is not known without {control} of the same seeds."
    pair, alone = max(beside, key=lambda each: (_tells(each[0], each[1], guess, tests), each[0].protected.last.mean - each[1]))
    got = f"{pair.clean.network} gets {pair.protected.last.mean:.1f} % right"
    clean = f"from those clean images alone {alone:.1f} % and from all images clean {pair.clean.last.mean:.1f} %"
    return f"{start}, {got}, {clean}: {_added(pair, alone, guess, tests)}."


def _tells(pair: VictimPair, alone: float, guess: float, tests: int) -> bool:
    """Whether the clean share alone leaves something that the other images could add."""
    clean = pair.clean.last.mean
    return clean - alone > max(error_between(alone, clean, tests), min(NEAR, (clean - guess) / 2))


def _added(pair: VictimPair, alone: float, guess: float, tests: int) -> str:
    """What the protected images add to `alone`, which their clean share gives."""
    mixed, clean = pair.protected.last.mean, pair.clean.last.mean
    added, all_clean = mixed - alone, clean - alone
    little = max(error_between(alone, mixed, tests), ALIKE * all_clean)
    if added < -little:
        return f"the protected ones take {-added:.1f} points away"
    if not _tells(pair, alone, guess, tests):
        return "the share alone is nearly as good as all of them, so that nothing can be said of the protected ones"
    if added <= little:
        return "the protected ones add next to nothing"
    said = f"the protected ones add {added:.1f} of the {all_clean:.1f} points that they would add if they were clean"
    undone = lost(pair) <= max(error_between(mixed, clean, tests), ALIKE * all_clean)
    return f"{said}, so that beside clean images their protection is undone" if undone else said
