from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

from sep.choices import NetworkName
from sep.models import Network, build, check_input_size

MEAN, STD = (120.0, 125.0, 130.0), (60.0, 65.0, 70.0)


@pytest.mark.parametrize(
    ("name", "classes", "side", "parameters", "width"),
    [
        ("resnet8", 10, 32, 78_042, 64),
        ("resnet8", 10, 64, 78_042, 64),
        ("resnet18", 10, 32, 11_173_962, 512),  # 3x3 stem
        ("resnet18", 10, 64, 11_181_642, 512),  # as in torchvision
        ("resnet18", 1000, 224, 11_689_512, 512),
    ],
)
def test_sizes_are_the_published_ones(name: str, classes: int, side: int, parameters: int, width: int) -> None:
    network = build(name, classes, side, MEAN, STD)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert (network.head.in_features, network.head.out_features) == (width, classes)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        *((name, 32) for name in get_args(NetworkName)),
        ("resnet8", 16),
        *((name, 64) for name in get_args(NetworkName) if name != "vgg16-bn"),
    ],
)
def test_gives_penultimate_features_and_logits(name: str, side: int) -> None:
    network = build(name, 7, side, MEAN, STD).eval()
    levels = 255 * torch.rand(2, 3, side, side)
    with torch.no_grad():
        features, logits = network(levels)
        assert torch.equal(features, network.features(levels))
        assert torch.equal(logits, network.head(features))
    assert features.shape == (2, network.head.in_features)
    assert logits.shape == (2, 7)


@pytest.mark.parametrize(("side", "last"), [(32, 4), (64, 2), (63, 8)])
def test_small_images_keep_their_resolution(side: int, last: int) -> None:
    """Below 64 pixels only the three later stages of ResNet18 halve the side; from 64 on the stem divides it by four."""
    seen: list[torch.Size] = []
    network = build("resnet18", 2, side, MEAN, STD).eval()
    layer = network.trunk.get_submodule("layer4")
    layer.register_forward_hook(lambda module, given, result: seen.append(result.shape))
    with torch.no_grad():
        network(torch.zeros(1, 3, side, side))
    assert seen == [(1, 512, last, last)]


def test_levels_are_normalised_inside() -> None:
    network = Network(nn.Flatten(), 3, 2, MEAN, STD)
    levels = torch.tensor([255.0, 125.0, 60.0]).view(1, 3, 1, 1)
    assert network.features(levels)[0].tolist() == pytest.approx([135 / 60, 0, -1])
    assert {"mean", "std"} <= network.state_dict().keys()  # a checkpoint carries its normalisation


def test_same_seed_same_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([parameter.flatten() for parameter in build("resnet8", 3, 32, MEAN, STD).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_an_unknown_network_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'resnet9'.*resnet8, resnet18"):
        build("resnet9", 10, 32, MEAN, STD)


@pytest.mark.parametrize(("name", "side"), [("resnet8", 32), ("vgg16-bn", 32)])
def test_features_are_means_over_all_places_and_their_gradient_is_laid_out_as_they_are(name: str, side: int) -> None:
    torch.manual_seed(0)
    trunk = build(name, 10, side, MEAN, STD).trunk
    *layers, average = trunk.children()
    images = torch.randn(2, 3, side, side).contiguous(memory_format=torch.channels_last)
    maps = nn.Sequential(*layers)(images).detach().repeat(1, 1, 3, 2).contiguous(memory_format=torch.channels_last).requires_grad_()
    features = average(maps)
    assert torch.allclose(features, maps.mean((2, 3)), atol=1e-6)
    (slope,) = torch.autograd.grad(features.square().sum(), maps)
    assert slope.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", get_args(NetworkName))
def test_what_a_network_must_take_it_takes_for_real(name: str) -> None:
    """The check without arithmetic agrees with a real forward pass."""
    for height, width in ((32, 32), (28, 28), (48, 32), (30, 30)):
        try:
            check_input_size(name, 3, height, width)
        except ValueError:
            with pytest.raises((ValueError, AssertionError)):
                build(name, 3, min(height, width), MEAN, STD)(torch.zeros(2, 3, height, width))
        else:
            build(name, 3, min(height, width), MEAN, STD)(torch.zeros(2, 3, height, width))


@pytest.mark.parametrize(
    ("name", "height", "width", "word"),
    [("vgg16-bn", 28, 28, "needs 32 pixels"), ("vit-small", 48, 32, "48 x 32"), ("vit-small", 30, 30, "multiple of")],
)
def test_what_a_network_cannot_take_is_refused_with_the_reason(name: str, height: int, width: int, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        check_input_size(name, 3, height, width)
