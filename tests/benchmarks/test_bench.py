"""The benchmark: it runs, its counts are right, and its contenders compute the same. No test looks at a time."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cluster.resources import Resources
from sep.choices import Precision
from tests.benchmarks import loader, plain
from tests.benchmarks.bench import BEGIN, CARD, END, QUICK, measure, table, with_table
from tests.benchmarks.rates import METHODS, VIEWS, by_views, convolutions_alone, gradients
from tests.benchmarks.tables import PERFORMANCE
from tests.benchmarks.trained import Trained, train
from tests.benchmarks.turns import in_turns

STEPS = 4


@pytest.fixture(scope="module")
def trained() -> Trained:
    """Two checkpoints of a small network."""
    return train("resnet8", images=80, epochs=2)


@pytest.fixture(scope="module")
def card(ray_2_cpus: Resources) -> dict[str, Any]:
    """The card of the quick mode."""
    return measure(quick=True, compiled=False)


@pytest.mark.parametrize("method", METHODS)
def test_the_plain_loop_and_the_library_craft_the_same(trained: Trained, method: Any) -> None:
    plain = trained.plain_craft(trained.plain_networks(), method, 20, STEPS, 20)
    ours = trained.craft(trained.members(method), method, 20, STEPS)
    changes = ours.int() - trained.images[:20].int()
    assert (changes != 0).double().mean() > 0.5
    assert (plain == ours).double().mean() > 0.98


@pytest.mark.parametrize("method", METHODS)
def test_the_plain_loop_crafts_the_same_whatever_it_computes_besides(trained: Trained, method: Any) -> None:
    networks = trained.plain_networks()
    alone = trained.plain_craft(networks, method, 20, STEPS, 20)
    assert not any(weight.grad is not None for network in networks for weight in network.parameters())
    with_weights = trained.plain_craft(networks, method, 20, STEPS, 20, plain.backward)
    assert all(weight.grad is not None for network in networks for weight in network.trunk.parameters())
    assert (alone == with_weights).double().mean() > 0.999


def test_convolutions_alone_are_all_of_them_and_no_more(trained: Trained) -> None:
    counted: list[str] = []

    class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            counted.append(func.name())
            return func(*args, **(kwargs or {}))

    run = convolutions_alone(trained, 20)
    with Count():  # type: ignore[no-untyped-call]
        run()
    layers = sum(isinstance(module, nn.Conv2d) for module in trained.networks[0].modules())
    assert counted.count("aten::convolution_backward") == layers
    assert sorted(set(counted)) == ["aten::convolution", "aten::convolution_backward"]


def test_convolutions_alone_round_as_ours_do(trained: Trained) -> None:
    """So that the yardstick and what it measures use the same units of a GPU."""

    class Types(TorchDispatchMode):  # type: ignore[no-untyped-call]
        seen: ClassVar[set[torch.dtype]] = set()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            Types.seen |= {value.dtype for value in args if isinstance(value, torch.Tensor)}
            return func(*args, **(kwargs or {}))

    expected: dict[Precision, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16}
    for precision, dtype in expected.items():
        run = convolutions_alone(trained, 20, precision)
        Types.seen = set()
        with Types():  # type: ignore[no-untyped-call]
            run()
        assert Types.seen == {dtype}


def test_views_are_measured_one_by_one_and_mixed(trained: Trained) -> None:
    found = by_views(trained, 8, 1)
    assert found.keys() == {*VIEWS, "mix"}
    assert min(found.values()) > 0


def test_methods_are_told_apart(trained: Trained) -> None:
    results = [trained.plain_craft(trained.plain_networks(), method, 20, STEPS, 20) for method in METHODS]
    for i, one in enumerate(results):
        for other in results[i + 1 :]:
            assert (one == other).double().mean() < 0.9


def test_streaming_is_measured_in_first_and_later_epochs() -> None:
    rows = [loader.measure(*arguments) for arguments in QUICK.streamed]
    assert all(min(row[name] for name in ("first", "later", "trained", "gpu")) > 0 for row in rows)
    shown = loader.table(rows)
    assert [line.split(" | ")[0] for line in shown[2:]] == ["| 16 x 16"]


def test_contenders_take_turns() -> None:
    calls: list[str] = []
    seconds = in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repetitions=3)
    assert calls == ["a", "b"] * 4
    assert seconds.keys() == {"a", "b"}


def test_gradients_are_counted_as_the_method_takes_them() -> None:
    assert gradients("sep-fa", images=7, members=3, steps=2) == 7 * 3 * 2
    assert gradients("sep-fa-vr", images=7, members=3, steps=2) == 7 * (3 + 3 - 1) * 2


@pytest.mark.ray
@pytest.mark.slow
def test_quick_mode_fills_the_card(card: dict[str, Any]) -> None:
    found = card["networks"]["resnet8"]
    assert {row["method"] for row in found["against_plain"]} == set(METHODS)
    assert all(row["plain"] > 0 and row["ours"] > 0 for row in found["against_plain"])
    assert {point["steps"] for point in found["growth"]["steps"]} == {1, 2, 4}
    assert min(found["memory"]["ours"].values()) > 0
    assert card["worker_mib_after_shards"].keys() == set(map(str, QUICK.shards))
    assert card["stage"]["images"] == 80
    assert card["stage"]["stage_images_per_second"] > 0
    assert [(row["method"], row["gradients_per_image"]) for row in card["recipes"]] == [("sep-fa", 4), ("sep-fa-drawn", 2)]
    assert all(row["crafting_images_per_second"] >= row["images_per_second"] > 0 for row in card["recipes"])
    assert card["loader"]["rows"][0]["side"] == 16
    assert card["hardware"]
    assert card["versions"]["torch"]


@pytest.mark.ray
@pytest.mark.slow
def test_quick_mode_finds_that_exact_kernels_agree(card: dict[str, Any]) -> None:
    rows = {row["variant"]: row for row in card["networks"]["resnet8"]["agreement"]}
    for exact in ("plain kernels, float32", "fused, float32"):
        assert rows[exact]["equal_signs"] > 0.98
        assert rows[exact]["equal_values"] > 0.98


@pytest.mark.ray
@pytest.mark.slow
def test_table_shows_the_card(card: dict[str, Any]) -> None:
    shown = table(card)
    for row in card["networks"]["resnet8"]["against_plain"]:
        rates = f"{row['plain']:,.0f} | {row['plain_backward']:,.0f} | **{row['ours']:,.0f}**"
        assert f"| {row['method']} | {row['threads']} | {rates} | {row['ratio']:.2f}, {row['ratio_backward']:.2f} |" in shown
    assert shown in with_table(f"before {BEGIN} old {END} after", card)


def test_the_page_shows_the_card() -> None:
    text = PERFORMANCE.read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    if CARD.exists():
        assert with_table(text, json.loads(CARD.read_text())) == text, "run: python -m tests.benchmarks.bench table"
