from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from sep.craft import craft
from sep.craft_config import CraftConfig
from sep.ensemble import Member, class_sums, equally_spaced, freeze
from sep.models import Network, build

K = 4


@pytest.fixture
def trained() -> Network:
    """A network whose batch-norm statistics and weights are not those of its initialisation, left in training mode."""
    torch.manual_seed(0)
    network = build("resnet8", K, 16, [120.0, 125.0, 130.0], [60.0, 65.0, 70.0])
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    network.train()
    with torch.no_grad():
        for _ in range(20):
            network(255 * torch.rand(16, 3, 16, 16))
    return network


@pytest.fixture
def images() -> Tensor:
    return torch.randint(256, (30, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_epochs_are_those_of_the_method() -> None:
    assert equally_spaced(120, 30) == list(range(3, 120, 4))
    assert equally_spaced(120, 15) == list(range(7, 120, 8))
    assert equally_spaced(120, 1) == [119]
    assert equally_spaced(5, 5) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("epochs", "count"), [(30, 7), (100, 30), (3, 2), (1, 1)])
def test_epochs_are_distinct_sorted_and_end_with_the_last(epochs: int, count: int) -> None:
    chosen = equally_spaced(epochs, count)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == count
    assert chosen[-1] == epochs - 1
    assert chosen[0] >= 0


@pytest.mark.parametrize("count", [0, 6])
def test_more_checkpoints_than_epochs_are_refused(count: int) -> None:
    with pytest.raises(ValueError, match=r"1 to 5"):
        equally_spaced(5, count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_freezing_keeps_the_function_and_leaves_no_batch_norm(trained: Network, images: Tensor, dtype: torch.dtype) -> None:
    trained.to(dtype)
    frozen = freeze(trained)
    levels = images.to(dtype)
    with torch.no_grad():
        features, logits = frozen(levels)
        wanted_features, wanted_logits = copy.deepcopy(trained).eval()(levels)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert torch.allclose(features, wanted_features, rtol=tolerance, atol=tolerance)
    assert torch.allclose(logits, wanted_logits, rtol=tolerance, atol=tolerance)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())
    assert {parameter.dtype for parameter in frozen.parameters()} == {dtype}
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_nothing_about_the_source_network_moves(trained: Network, images: Tensor) -> None:
    before = copy.deepcopy(trained.state_dict())
    labels = torch.arange(30) % K
    frozen = freeze(trained)
    held = copy.deepcopy(frozen.state_dict())
    sums, counts = class_sums(frozen, [(images, labels)], K)
    config = CraftConfig(method="sep-fa", checkpoints=1, steps=2)
    craft([Member(frozen, (sums / counts[:, None]).float())], images, (labels + 1) % K, config, torch.Generator())
    after = trained.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(held[name], value) for name, value in frozen.state_dict().items())
    assert trained.training  # not even its mode
    assert all(parameter.grad is None for parameter in (*trained.parameters(), *frozen.parameters()))


@pytest.mark.parametrize("part", ["head.weight", "running_var"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_of_a_training_that_diverged_is_refused(trained: Network, part: str, value: float) -> None:
    next(tensor for name, tensor in trained.state_dict().items() if name.endswith(part)).view(-1)[0] = value
    with pytest.raises(ValueError, match="weights are not finite"):
        freeze(trained)


def test_a_network_that_can_still_change_is_no_member(trained: Network) -> None:
    with pytest.raises(AssertionError):
        Member(trained)
    with pytest.raises(AssertionError):
        Member(trained.eval())  # still has weight gradients
    trained.requires_grad_(False)
    Member(trained)
    next(module for module in trained.modules() if isinstance(module, nn.BatchNorm2d)).train()
    with pytest.raises(AssertionError):
        Member(trained)
    with pytest.raises(AssertionError):
        class_sums(trained.train(), [], K)


def test_sums_over_pieces_are_the_sums_of_the_whole_and_give_the_means(trained: Network, images: Tensor) -> None:
    labels = torch.arange(30) % 3  # class 3 has no image
    frozen = freeze(trained.double())
    whole, counts = class_sums(frozen, [(images, labels)], K)
    pieces = [class_sums(frozen, [(images[a:b], labels[a:b])], K) for a, b in ((0, 7), (7, 8), (8, 30))]
    batches = [(images[a:b], labels[a:b]) for a, b in ((0, 11), (11, 30))]
    assert counts.tolist() == [10, 10, 10, 0]
    assert torch.equal(sum((n for _, n in pieces), torch.zeros(K, dtype=torch.int64)), counts)
    assert torch.equal(sum((s for s, _ in reversed(pieces)), torch.zeros_like(whole)), whole)  # to the bit, in any order
    assert torch.equal(class_sums(frozen, batches, K)[0], whole)
    with torch.no_grad():
        features = copy.deepcopy(trained).eval().features(images.double())
    for c in range(3):
        assert torch.allclose(whole[c] / counts[c], features[labels == c].mean(0), rtol=0, atol=2**-24)
    assert whole.dtype == torch.float64
    assert not bool(whole[3].any())
