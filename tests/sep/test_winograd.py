"""Convolutions with fewer multiplications: the same sums and gradients, and torch's own algorithm wherever that is faster."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import sep.winograd
from sep.choices import Kernels
from sep.ensemble import Member, freeze
from sep.models import build
from sep.winograd import Winograd, replace_convolutions, suits


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the algorithm for convolutions of any size."""
    for name in ("CHANNELS", "TILES", "PRODUCTS"):
        monkeypatch.setattr(sep.winograd, name, 1)


def convolution(channels: int, out: int, *, bias: bool = True, dtype: torch.dtype = torch.float64) -> nn.Conv2d:
    torch.manual_seed(0)
    made = nn.Conv2d(channels, out, 3, padding=1, bias=bias).to(dtype)
    return made.to(memory_format=torch.channels_last).requires_grad_(False)


def both(layer: nn.Module, x: Tensor, back: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output of a layer, and the gradient of its input."""
    x = x.detach().requires_grad_()
    y = layer(x)
    return y.detach(), torch.autograd.grad(y, x, back)[0]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 4), (2, 7, 7), (2, 3, 6), (1, 11, 5), (5, 16, 12)])
@pytest.mark.parametrize(("channels", "out", "bias"), [(6, 6, True), (3, 10, True), (7, 2, False)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.usefixtures("always")
def test_it_is_the_convolution(
    shape: tuple[int, int, int], channels: int, out: int, bias: bool, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, height, width = shape
    direct = convolution(channels, out, bias=bias)
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(count, channels, height, width, generator=draw, dtype=torch.float64).contiguous(memory_format=layout)
    back = torch.randn(count, out, height, width, generator=draw, dtype=torch.float64).contiguous(memory_format=layout)
    layer = Winograd(direct)
    assert layer.pays(x)
    wanted, found = both(direct, x, back), both(layer, x, back)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
        assert mine.is_contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(sep.winograd, "AT_ONCE", 1)  # one image at a time
    for mine, theirs in zip(both(layer, x, back), found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_float32_stays_in_its_last_places() -> None:
    exact, coarse = convolution(128, 128), convolution(128, 128, dtype=torch.float32)
    draw = torch.Generator().manual_seed(1)
    x, back = (torch.randn(32, 128, 16, 16, generator=draw) for _ in range(2))
    assert Winograd(coarse).pays(x)
    wanted, found = both(exact, x.double(), back.double()), both(Winograd(coarse), x, back)
    with torch.inference_mode():
        assert torch.equal(Winograd(coarse)(x), found[0])
    for mine, theirs in zip(found, wanted, strict=True):
        assert not torch.equal(mine.double(), theirs)
        assert float((mine - theirs).abs().max() / theirs.abs().max()) < 2e-5
        assert float((mine.sign() == theirs.sign()).double().mean()) > 0.9999


def test_it_is_used_where_it_is_faster() -> None:
    wide = Winograd(convolution(64, 128, dtype=torch.float32))
    assert wide.pays(torch.empty(64, 64, 16, 16))
    assert wide.pays(torch.empty(64, 64, 15, 15))
    assert not wide.pays(torch.empty(64, 64, 8, 8))  # too few products
    assert not wide.pays(torch.empty(2000, 64, 2, 2))  # tiles that lie mostly beyond the edge
    assert not wide.pays(torch.empty(64, 64, 16, 16, device="meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not wide.pays(torch.empty(64, 64, 16, 16))
        assert wide(torch.zeros(64, 64, 16, 16)).dtype == torch.bfloat16
    wider = Winograd(convolution(512, 512, dtype=torch.float32))
    assert wider.pays(torch.empty(32, 512, 4, 4))
    assert not wider.pays(torch.empty(31, 512, 4, 4))  # too few tiles


@pytest.mark.parametrize(
    "other",
    [
        {"stride": 2},
        {"padding": 0},
        {"padding": "same"},
        {"dilation": 2, "padding": 1},
        {"groups": 2},
        {"kernel_size": 1, "padding": 0},
        {"kernel_size": 5},
        {"padding_mode": "reflect"},
        {"in_channels": 63},
        {"out_channels": 63},
    ],
)
def test_other_convolutions_are_left_to_torch(other: dict[str, int]) -> None:
    usual = {"in_channels": 64, "out_channels": 64, "kernel_size": 3, "padding": 1}
    assert suits(nn.Conv2d(**usual))  # type: ignore[arg-type]
    assert not suits(nn.Conv2d(**usual | other))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "count"), [("resnet8", 1), ("resnet18", 13), ("senet18", 13), ("vgg16-bn", 12), ("densenet121", 0), ("vit-small", 0)]
)
def test_frozen_networks_have_it(name: str, count: int) -> None:
    torch.manual_seed(0)
    network = build(name, 5, 32, (120.0,) * 3, (60.0,) * 3)

    def found(kernels: Kernels) -> int:
        return sum(isinstance(part, Winograd) for part in freeze(network, kernels).modules())

    assert (found("fused"), found("plain"), found("compiled")) == (count, 0, 0)
    assert not any(isinstance(part, Winograd) for part in network.modules())
    Member(freeze(network))  # a member refuses anything that could still change


@pytest.mark.parametrize(("name", "layers"), [("resnet18", 14), ("vgg16-bn", 10), ("googlenet", 20), ("senet18", 14)])
@pytest.mark.usefixtures("always")
def test_networks_with_it_have_the_gradients_of_those_without(name: str, layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = build(name, 5, 32, (120.0,) * 3, (60.0,) * 3).double().to(memory_format=torch.channels_last)
    with torch.no_grad():
        network.train()(torch.rand(4, 3, 32, 32, dtype=torch.float64) * 255)  # fitting statistics, so that outputs are not zero
    used: list[tuple[int, ...]] = []
    convolve = sep.winograd._convolve

    def noted(x: Tensor, filters: Tensor) -> Tensor:
        used.append(tuple(x.shape))
        return convolve(x, filters)

    monkeypatch.setattr(sep.winograd, "_convolve", noted)
    levels = (torch.rand(2, 3, 32, 32, dtype=torch.float64) * 255).contiguous(memory_format=torch.channels_last).requires_grad_()
    gradients = []
    for kernels, calls in (("fused", 2 * layers), ("compiled", 0)):  # forward and back
        frozen = pickle.loads(pickle.dumps(copy.deepcopy(freeze(network, kernels))))  # type: ignore[arg-type]
        gradients.append(torch.autograd.grad(frozen(levels)[1].square().sum(), levels)[0])
        assert len(used) == calls
        used.clear()
    assert bool(gradients[1].any())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-7, atol=1e-9 * float(gradients[1].abs().max()))


def test_weights_that_are_trained_are_refused() -> None:
    with pytest.raises(AssertionError):
        Winograd(nn.Conv2d(64, 64, 3, padding=1))
    trunk = nn.Sequential(nn.Sequential(nn.Conv2d(64, 64, 3, padding=1)), nn.ReLU(inplace=True)).requires_grad_(False)
    replace_convolutions(trunk)
    assert isinstance(trunk.get_submodule("0.0"), Winograd)
