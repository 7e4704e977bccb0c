from __future__ import annotations

import torch

from sep.ensemble import Member, freeze
from sep.models import build
from sep.similarity import gradient_cosines
from tests.fixtures import reference


def test_cosines_are_those_of_the_reference() -> None:
    draw = torch.Generator().manual_seed(0)
    images, targets = torch.randint(256, (3, 3, 8, 8), generator=draw, dtype=torch.uint8), torch.tensor([0, 2, 1])
    networks = []
    for seed in range(3):
        torch.manual_seed(seed)
        networks.append(build("resnet8", 3, 8, [120.0] * 3, [60.0] * 3).double().eval())
    found = gradient_cosines([Member(freeze(network)) for network in networks], images, targets)
    assert found.shape == (3, 3)
    assert torch.allclose(found, found.T)
    assert torch.allclose(found.diagonal(), torch.ones(3, dtype=torch.float64))
    points = [reference.Checkpoint(network, ()) for network in networks]
    for i in range(3):
        for j in range(i):
            cosines = []
            for image, target in zip(images.double(), targets.tolist(), strict=True):
                a, b = (reference.gradient_of(points[k], image, target, False).flatten() for k in (i, j))
                cosines.append((a @ b) / (a.norm() * b.norm()))
            assert torch.isclose(found[i, j], torch.stack(cosines).mean(), atol=1e-10)


def test_same_network_twice_is_parallel_and_its_mirror_is_opposed() -> None:
    torch.manual_seed(0)
    network = freeze(build("resnet8", 2, 8, [120.0] * 3, [60.0] * 3))
    mirror = freeze(build("resnet8", 2, 8, [120.0] * 3, [60.0] * 3))
    mirror.load_state_dict(network.state_dict())
    mirror.head.weight.copy_(network.head.weight.flip(0))  # of two classes, moving towards one is moving away from the other
    mirror.head.bias.copy_(network.head.bias.flip(0))
    images = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    found = gradient_cosines([Member(network), Member(network), Member(mirror)], images, torch.zeros(4, dtype=torch.int64))
    assert torch.allclose(found[0], torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64), atol=1e-5)
