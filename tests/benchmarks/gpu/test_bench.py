"""The bench of the proof: what it counts is right, and what fails or is killed is noted, not repeated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import record_function

from cluster.deadline import NEVER, Deadline
from tests.benchmarks.gpu.bench import MINIATURE, TRAININGS, Bench, measure
from tests.benchmarks.gpu.kernels import profiled

QUICK = ("matrix products", "operations", "training, eager", "gradients, fused, float32, 20")


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())["measured"]
    return found


def test_a_card_grows_and_goes_on(tmp_path: Path) -> None:
    card = tmp_path / "bench.json"
    assert not measure(MINIATURE, card, Deadline.after(0), QUICK)
    assert measure(MINIATURE, card, NEVER, QUICK)
    found = read(card)
    assert [*found] == sorted(QUICK)
    forward = 50_003_968 / 2  # twice the multiplications of a ResNet-8: those of the gradient of its pixels are as many
    assert found["operations"]["gradient"] == 2 * forward
    assert 2.9 * forward < found["operations"]["training"] < 3 * forward  # the first layer's pixels need no gradient
    rates = {
        "training": (found["training, eager"], "images_per_second"),
        "gradient": (found["gradients, fused, float32, 20"], "gradients_per_second"),
    }
    for operation, (measured, figure) in rates.items():
        assert measured["tflops"] == pytest.approx(measured[figure] * found["operations"][operation] / 1e12, rel=0.01)
        most = found["matrix products"]["tflops"]["float32"]
        assert measured["share_of_matrix_products"] == pytest.approx(measured["tflops"] / most, rel=0.02)
    before = card.read_bytes()
    assert measure(MINIATURE, card, NEVER, QUICK)
    assert card.read_bytes() == before


def test_what_fails_or_ends_the_process_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = tmp_path / "bench.json"

    def fails(bench: Bench) -> dict[str, Any]:
        raise RuntimeError("no such kernel\nand a long trace")

    def dies(bench: Bench) -> dict[str, Any]:
        raise SystemExit  # as far as a process that goes on can have it

    with monkeypatch.context() as patch:
        patch.setattr(Bench, "products", fails)
        assert measure(MINIATURE, card, NEVER, ["matrix products"])
        patch.setattr(Bench, "operations", dies)
        with pytest.raises(SystemExit):
            measure(MINIATURE, card, NEVER, ["operations"])
    assert measure(MINIATURE, card, NEVER, ["matrix products", "operations"])
    found = read(card)
    assert found["matrix products"]["failed"] == "RuntimeError: no such kernel"
    assert found["operations"]["failed"] == "the process ended in it"


def test_the_most_valuable_comes_first_and_all_ways_to_train_are_measured() -> None:
    names = [*Bench(MINIATURE, {}).measurements]
    assert names[:2] == ["matrix products", "operations"]
    assert names[2 : 2 + len(TRAININGS)] == [f"training, {way}" for way in TRAININGS]
    assert {"profile of a gradient, fused, float32", "profile of a training step, eager", "convolutions alone"} <= {*names}
    assert (
        names.index("gradients, fused, float32, 20")
        < names.index("gradients, compiled, float32, 20")
        < names.index("gradients, fused, float32, 40")
    )


def test_a_profile_is_of_one_of_several() -> None:
    a = torch.ones(8, 8)

    def call() -> None:
        with record_function("a name for all of them"):  # which is no kernel
            for _ in range(5):
                torch.mm(a, a)

    found = profiled(call, times=5)
    assert [(each["name"], each["launches"]) for each in found["kernels"] if each["name"] == "aten::mm"] == [("aten::mm", 1.0)]
    assert "a name for all of them" not in {each["name"] for each in found["kernels"]}
    assert found["milliseconds"] > 0
