"""Turns of a measurement: the work of each is counted as its own."""

from __future__ import annotations

import pytest
import torch

from tests.benchmarks.turns import in_turns


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CPU leaves no work in a queue")
def test_a_turn_ends_when_the_gpu_is_done() -> None:
    """And with it the next one begins: what a contender leaves in the queue is not counted as another's."""
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    found: list[bool] = []

    def leave_work() -> None:
        torch.cuda._sleep(10**8)  # type: ignore[no-untyped-call]  # cycles, about 50 ms
        done.record()

    def look() -> None:
        found.append(done.query())  # type: ignore[no-untyped-call]

    in_turns({"leaves work": leave_work, "finds none": look}, repetitions=3)
    assert found[1:] == [True] * 3
