"""Times of several contenders, measured in turns. Needs torch alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch


def in_turns(contenders: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Return the least seconds of each, after a warm-up call: A B A B ..., so that a slow minute of the machine meets all alike.

    Each turn begins and ends with an idle GPU. The least is better than the median, because other work on a shared machine can only add
    time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender()
    synchronise()
    for _ in range(repetitions):
        for name, contender in contenders.items():
            begun = time.perf_counter()
            contender()
            synchronise()
            seconds[name].append(time.perf_counter() - begun)
    return {name: min(values) for name, values in seconds.items()}


def synchronise() -> None:
    """Wait until the GPU is idle, if the machine has one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
