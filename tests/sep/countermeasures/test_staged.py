"""Slow early layers: which move, and by how much."""

from __future__ import annotations

import pytest
import torch

from sep.countermeasures.staged import RATES, staged
from sep.models import build


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "vit-small"])
def test_gradients_grow_with_the_depth_of_their_layer(name: str) -> None:
    torch.manual_seed(0)
    network, plain = (build(name, 3, 32, (128.0,) * 3, (64.0,) * 3) for _ in range(2))
    plain.load_state_dict(network.state_dict())
    staged(network)
    images, shares = 255 * torch.rand(4, 3, 32, 32), []
    for each in (network, plain):
        torch.manual_seed(1)
        torch.autograd.backward(torch.nn.functional.cross_entropy(each(images)[1], torch.tensor([0, 1, 2, 0])))
    for slow, full in zip(network.trunk.parameters(), plain.trunk.parameters(), strict=True):
        assert slow.grad is not None
        assert full.grad is not None
        if float(full.grad.norm()) > 1e-6:
            shares.append(round(float(slow.grad.norm() / full.grad.norm()), 4))
    assert shares == sorted(shares)
    assert list(dict.fromkeys(shares)) == [*RATES, 1.0]
    assert network.head.weight.grad is not None
    assert plain.head.weight.grad is not None
    assert torch.equal(network.head.weight.grad, plain.head.weight.grad)
