"""Networks that map images to images: sizes, the same result from the same seed, and images that are restored in parts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sep.countermeasures.restoration import MULTIPLE, TOGETHER, UNet, restored, scaled, trained


def images(count: int, height: int = 16, width: int = 16) -> Tensor:
    return torch.randint(256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(16, 16), (13, 21), (8, 17)])
def test_nothing_changes_where_a_network_gives_back_what_it_gets(shape: tuple[int, int]) -> None:
    """More images than are restored together, of sides that the network does not take as they are."""
    before = images(TOGETHER + 3, *shape)
    seen = []

    def change(numbers: Tensor) -> Tensor:
        seen.append(tuple(numbers.shape))
        assert -1 <= float(numbers.min()) <= float(numbers.max()) <= 1
        return numbers

    after = restored(change, before, torch.device("cpu"))
    assert torch.allclose(after, before.float(), atol=1e-3)
    assert [count for count, *_ in seen] == [TOGETHER, 3]
    assert all(side % MULTIPLE == 0 for _, _, *sides in seen for side in sides)


def test_results_keep_to_levels() -> None:
    after = restored(lambda numbers: 3 * numbers, images(2), torch.device("cpu"))
    assert (float(after.min()), float(after.max())) == (0, 255)


def test_a_training_lowers_its_loss_and_the_same_seed_gives_the_same_network() -> None:
    """Images become their negatives, and a moment tells how far."""
    batch = images(8)

    def learned(seed: int) -> tuple[UNet, list[float]]:
        torch.manual_seed(seed)
        network, losses = UNet(width=8), []

        def loss(levels: Tensor, moments: Tensor) -> Tensor:
            value = functional.mse_loss(network(scaled(levels), moments), (1 - 2 * moments[:, None, None, None]) * scaled(levels))
            losses.append(float(value.detach()))
            return value

        trained(network, loss, lambda _: [(batch, torch.arange(8) / 7)], 40, rate=0.01)
        return network, losses

    network, losses = learned(0)
    assert losses[-1] < losses[0] / 2
    assert len(losses) == 40
    assert not network.training
    assert not any(weight.requires_grad for weight in network.parameters())
    weights = [torch.cat([weight.flatten() for weight in each.parameters()]) for each in (network, learned(0)[0], learned(1)[0])]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
