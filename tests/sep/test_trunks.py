"""Architectures: their sizes, their changes for small images, and that each can be trained, frozen and attacked."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import (
    DenseNet121_Weights,
    GoogLeNet_Weights,
    MobileNet_V2_Weights,
    ResNet18_Weights,
    VGG16_BN_Weights,
    densenet121,
    googlenet,
    mobilenet_v2,
    resnet18,
    vgg16_bn,
)

from sep.choices import NetworkName
from sep.ensemble import freeze
from sep.models import Network, build
from sep.trunks import TRUNKS

MEAN, STD = (120.0, 125.0, 130.0), (60.0, 65.0, 70.0)
K = 5
NAMES = tuple(TRUNKS)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def norms(module: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


def images(count: int, side: int, seed: int = 0) -> Tensor:
    drawn = torch.randint(256, (count, 3, side, side), generator=torch.Generator().manual_seed(seed))
    return drawn.float().contiguous(memory_format=torch.channels_last)


def used(name: str, side: int) -> Network:
    """Return a float64 network in eval mode whose batch-norm statistics and weights differ from their initial values."""
    torch.manual_seed(0)
    network = build(name, K, side, MEAN, STD).double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.momentum = None  # plain means over the images: features would hardly depend on the image otherwise
    with torch.no_grad():
        for seed in range(2):
            network(images(4, side, seed).double())
    return network.eval()


def output_of(network: Network, part: str, side: int) -> tuple[int, ...]:
    """Return the shape of a trunk part's output for one image."""
    seen: list[tuple[int, ...]] = []
    with network.trunk.get_submodule(part).register_forward_hook(lambda module, given, result: seen.append(tuple(result.shape))):
        network.eval()(images(1, side))
    assert len(seen) == 1
    return seen[0]


def test_names_are_those_that_may_be_asked_for_and_fit_for_file_names() -> None:
    assert get_args(NetworkName) == NAMES
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in NAMES)


@pytest.mark.parametrize(
    ("name", "small", "small_width", "large", "large_width"),
    [
        ("resnet8", 78_042, 64, 142_392, 64),
        ("resnet18", 11_173_962, 512, 11_689_512, 512),
        ("senet18", 11_263_042, 512, 11_778_592, 512),
        ("vgg16-bn", 14_728_266, 512, 138_365_992, 4096),
        ("densenet121", 6_956_426, 1024, 7_978_856, 1024),
        ("googlenet", 5_602_474, 1024, 6_624_904, 1024),
        ("mobilenet-v2", 2_236_682, 1280, 3_504_872, 1280),
        ("vit-small", 1_806_538, 192, 2_161_192, 192),
    ],
)
def test_sizes_at_32_pixels_with_10_classes_and_at_224_with_1000(
    name: str, small: int, small_width: int, large: int, large_width: int
) -> None:
    with torch.device("meta"):  # weights are counted, never filled
        networks = build(name, 10, 32, MEAN, STD), build(name, 1000, 224, MEAN, STD)
    assert [parameters(network) for network in networks] == [small, large]
    assert [network.head.in_features for network in networks] == [small_width, large_width]


@pytest.mark.parametrize(
    ("name", "constructor", "weights"),
    [
        ("resnet18", resnet18, ResNet18_Weights),
        ("vgg16-bn", vgg16_bn, VGG16_BN_Weights),
        ("densenet121", densenet121, DenseNet121_Weights),
        ("googlenet", lambda: googlenet(init_weights=True), GoogLeNet_Weights),
        ("mobilenet-v2", mobilenet_v2, MobileNet_V2_Weights),
    ],
)
def test_large_images_get_torchvisions_own_architecture(name: str, constructor: Callable[[], nn.Module], weights: Any) -> None:
    """Shapes agree in order, except for GoogLeNet's auxiliary heads, and so do the counts that torchvision publishes."""
    with torch.device("meta"):
        ours, theirs = build(name, 1000, 224, MEAN, STD), constructor()
    wanted = {key: value.shape for key, value in theirs.state_dict().items() if not key.startswith("aux")}
    assert [tuple(shape) for shape in wanted.values()] == [
        tuple(value.shape) for key, value in ours.state_dict().items() if key not in ("mean", "std")
    ]
    assert parameters(ours) == weights.DEFAULT.meta["num_params"]


def test_squeeze_excitation_costs_what_its_paper_says() -> None:
    """This is 2/16 of the squared channels in each block (Hu et al. 2018, equation 5), and the biases of both layers."""
    extra = sum(2 * (2 * c * c // 16 + c // 16 + c) for c in (64, 128, 256, 512))
    with torch.device("meta"):
        plain, squeezed = (build(name, 10, 32, MEAN, STD) for name in ("resnet18", "senet18"))
    assert parameters(squeezed) - parameters(plain) == extra


def test_squeeze_excitation_scales_the_residual_and_not_the_shortcut() -> None:
    network = used("senet18", 32)
    blocks = [module for name, module in network.trunk.named_modules() if re.fullmatch(r"layer\d\.\d", name)]
    assert len(blocks) == 8
    for block in blocks:
        excitation = block.get_submodule("bn2.1")
        nn.init.zeros_(excitation.get_submodule("fc2").weight)
        nn.init.constant_(excitation.get_submodule("fc2").bias, -1e9)  # sigmoid: exactly 0
    given = torch.rand(1, 64, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(blocks[0](given), given)


@pytest.mark.parametrize(
    ("name", "part", "after", "end", "last"),
    [  # the output of the stem, and the side of the last feature maps
        ("resnet8", "2", (1, 16, 32, 32), "5", 8),
        ("resnet18", "maxpool", (1, 64, 32, 32), "layer4", 4),
        ("senet18", "maxpool", (1, 64, 32, 32), "layer4", 4),
        ("vgg16-bn", "0.5", (1, 64, 32, 32), "0", 1),
        ("densenet121", "features.pool0", (1, 64, 32, 32), "features", 4),
        ("googlenet", "maxpool2", (1, 192, 32, 32), "inception5b", 8),
        ("mobilenet-v2", "features.3", (1, 24, 32, 32), "features", 4),
        ("vit-small", "conv_proj", (1, 192, 8, 8), "conv_proj", 8),  # 64 patches of 4 by 4 pixels
    ],
)
def test_small_images_keep_their_resolution(name: str, part: str, after: tuple[int, ...], end: str, last: int) -> None:
    network = build(name, K, 32, MEAN, STD)
    assert output_of(network, part, 32) == after
    assert output_of(network, end, 32)[2:] == (last, last)


@pytest.mark.parametrize(
    ("name", "part", "after"),
    [  # at 64 pixels
        ("resnet8", "2", (1, 16, 32, 32)),
        ("resnet18", "maxpool", (1, 64, 16, 16)),
        ("senet18", "maxpool", (1, 64, 16, 16)),
        ("densenet121", "features.pool0", (1, 64, 16, 16)),
        ("googlenet", "maxpool2", (1, 192, 8, 8)),
        ("mobilenet-v2", "features.3", (1, 24, 16, 16)),
        ("vit-small", "conv_proj", (1, 192, 8, 8)),
    ],
)
def test_from_64_pixels_on_the_stem_halves(name: str, part: str, after: tuple[int, ...]) -> None:
    assert output_of(build(name, K, 64, MEAN, STD), part, 64) == after


def test_resnet8_is_still_the_one_of_the_published_results() -> None:
    """The draws and their order are the same: with other weights, the published results would be those of another network."""
    torch.manual_seed(0)
    network = build("resnet8", 10, 32, MEAN, STD).eval()
    state = network.state_dict()
    assert state["trunk.0.weight"].flatten()[:3].tolist() == pytest.approx([-0.1164255, -0.0327293, 0.2198296], rel=1e-4)
    assert float(sum(value.double().abs().sum() for key, value in state.items() if key.endswith("weight"))) == pytest.approx(
        4762.082479, rel=1e-6
    )
    assert float(torch.rand(())) == pytest.approx(0.98517352, rel=1e-6)  # exactly as many draws as before


@pytest.mark.parametrize(
    ("name", "stem", "deviation"),
    [
        ("resnet18", "conv1", (2 / (64 * 9)) ** 0.5),  # Kaiming by fan-out
        ("senet18", "conv1", (2 / (64 * 9)) ** 0.5),
        ("senet18", "layer4.1.bn2.1.fc1", (2 / 32) ** 0.5),
        ("vgg16-bn", "0.0", (2 / (64 * 9)) ** 0.5),
        ("vgg16-bn", "0.40", (2 / (512 * 9)) ** 0.5),
        ("densenet121", "features.conv0", (2 / (3 * 9)) ** 0.5),  # by fan-in
        ("googlenet", "conv1.conv", 0.01),
        ("mobilenet-v2", "features.0.0", (2 / (32 * 9)) ** 0.5),
    ],
)
def test_what_is_changed_for_small_images_is_initialised_like_the_rest(name: str, stem: str, deviation: float) -> None:
    torch.manual_seed(0)
    weight = build(name, K, 32, MEAN, STD).trunk.get_submodule(stem).weight
    assert isinstance(weight, Tensor)
    assert float(weight.detach().mean()) == pytest.approx(0, abs=0.1 * deviation)
    assert float(weight.detach().std()) == pytest.approx(deviation, rel=0.05)


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("name", ["vgg16-bn", "resnet18"])
def test_convolutions_have_no_bias_to_begin_with(name: str, side: int) -> None:
    with_weights = side == 32 or name != "vgg16-bn"  # VGG would take half a gigabyte, only to test its biases
    with torch.device("cpu" if with_weights else "meta"):
        trunk = build(name, K, side, MEAN, STD).trunk
    biases = [part.bias for part in trunk.modules() if isinstance(part, nn.Conv2d) and part.bias is not None]
    assert len(biases) == (13 if name == "vgg16-bn" else 0)
    assert not with_weights or not any(bool(bias.any()) for bias in biases)


REMAINING = {"densenet121": 62}  # norms that follow no convolution: one in each dense layer and transition, and the last


@pytest.mark.parametrize(("name", "side"), [*((name, 32) for name in NAMES), ("resnet8", 64), ("senet18", 64), ("vit-small", 64)])
def test_frozen_it_gives_the_same_features_logits_and_gradients(name: str, side: int) -> None:
    network = used(name, side)
    frozen = freeze(network)
    levels = images(2, side).double().requires_grad_()
    with torch.no_grad():
        for found, wanted in zip(frozen(levels), network(levels), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)
            assert not torch.allclose(wanted[0], wanted[1], rtol=1e-3)  # the outputs are not trivially equal
    assert norms(frozen) == REMAINING.get(name, 0)
    assert name == "vit-small" or norms(network) > norms(frozen)
    found, wanted = (torch.autograd.grad(part.features(levels).square().sum(), levels)[0] for part in (frozen, network))
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9 * float(wanted.abs().max()))
    assert bool((found != 0).all())  # every pixel has a gradient


@pytest.mark.parametrize("name", NAMES)
def test_frozen_or_not_it_can_be_copied_and_pickled(name: str) -> None:
    torch.manual_seed(0)
    network = build(name, K, 32, MEAN, STD).eval()
    levels = images(1, 32)
    for original in (network, freeze(network)):
        with torch.no_grad():
            wanted = original(levels)[1]
            assert torch.equal(copy.deepcopy(original)(levels)[1], wanted)
            assert torch.equal(pickle.loads(pickle.dumps(original))(levels)[1], wanted)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_sgd_lowers_the_loss_by_what_its_gradient_says(name: str) -> None:
    """The step is so small that the loss is a line along it, also behind many normalisations over four images, and not only rounding."""
    torch.manual_seed(0)
    network = build(name, K, 32, MEAN, STD).double().to(memory_format=torch.channels_last).train()
    levels, labels = images(4, 32).double(), torch.arange(4)
    sgd = torch.optim.SGD(network.parameters(), lr=1e-8)

    def loss() -> Tensor:
        torch.manual_seed(1)  # the same units are dropped before and after
        return functional.cross_entropy(network(levels)[1], labels)

    before = loss()
    torch.autograd.backward(before)
    expected = 1e-8 * sum(float(parameter.grad.square().sum()) for parameter in network.parameters() if parameter.grad is not None)
    assert all(parameter.grad is not None for parameter in network.parameters())
    sgd.step()
    with torch.no_grad():
        assert float(before) - float(loss()) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("side", "patch"), [(8, 1), (16, 2), (32, 4), (48, 4), (56, 4), (64, 8), (96, 8), (112, 8), (128, 16), (224, 16)])
def test_the_transformer_sees_64_to_196_patches(side: int, patch: int) -> None:
    trunk = build("vit-small", K, side, MEAN, STD).trunk
    projection = trunk.get_submodule("conv_proj")
    assert isinstance(projection, nn.Conv2d)
    assert projection.stride == projection.kernel_size == (patch, patch)
    assert 64 <= (side // patch) ** 2 <= 196
    assert trunk(torch.zeros(1, 3, side, side)).shape == (1, 192)


@pytest.mark.parametrize(("side", "below", "above"), [(63, 56, 64), (15, 14, 16), (33, 32, 36), (225, 224, 256)])
def test_sides_that_cannot_be_cut_into_patches_are_refused_with_ones_that_can(side: int, below: int, above: int) -> None:
    with pytest.raises(ValueError, match=rf"{side} is not a multiple .* {below} or {above} pixels"):
        build("vit-small", K, side, MEAN, STD)
    for mended in (below, above):
        build("vit-small", K, mended, MEAN, STD)


def test_images_too_small_for_the_poolings_of_vgg_are_refused() -> None:
    with pytest.raises(ValueError, match=r"vgg16-bn .* 32 pixels .* got 31"):
        build("vgg16-bn", K, 31, MEAN, STD)
    with torch.no_grad():
        for side in (32, 48, 63):
            assert build("vgg16-bn", K, side, MEAN, STD).eval()(images(1, side))[0].shape == (1, 512)
