"""Gradients and class means: the same on every device, up to the precision asked for."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from sep.choices import Kernels, Precision
from sep.craft import gradient
from sep.ensemble import Member, class_sums, compile_together, freeze
from sep.execution import arithmetic, resolve, to_device
from sep.models import Network
from tests.gpu.conftest import CLASSES
from tests.gpu.waiting import waits

CPU = torch.device("cpu")


def gradients(
    networks: list[Network],
    images: Tensor,
    labels: Tensor,
    device: torch.device,
    kernels: Kernels,
    precision: Precision,
    together: int = 64,
) -> Tensor:
    frozen = [freeze(network, kernels).to(device) for network in networks]
    if kernels == "compiled":
        compile_together(frozen)
    levels, targets = to_device(images, frozen[0].mean, kernels), labels.to(device)
    assert levels.device.type == device.type
    with arithmetic(device, precision):
        parts = list(zip(torch.split(levels, together), torch.split(targets, together), strict=True))
        found = torch.stack([torch.cat([gradient(Member(network), *part) for part in parts]) for network in frozen])
    assert (found.device.type, found.dtype) == (device.type, torch.float32)
    return found.cpu()


def same_signs(one: Tensor, other: Tensor) -> float:
    return float((one.sign() == other.sign()).double().mean())


@pytest.mark.parametrize(
    ("kernels", "precision", "share"),
    [  # of signs that rounding leaves alone: 24, 11 and 8 bits of the products' factors
        ("plain", "float32", 0.999),
        ("fused", "float32", 0.999),
        ("fused", "tf32", 0.98),
        ("fused", "bf16", 0.9),
    ],
)
def test_a_gradient_points_where_that_of_the_cpu_points(
    networks: list[Network], images: Tensor, labels: Tensor, device: torch.device, kernels: Kernels, precision: Precision, share: float
) -> None:
    wanted = gradients(networks, images, labels, CPU, "plain", "float32")
    found = gradients(networks, images, labels, device, kernels, precision)
    assert same_signs(wanted, found) > share
    assert same_signs(wanted, found.flip(0)) < 0.9  # each checkpoint has its own
    if precision == "float32":  # but in an image where a ReLU has a zero on one of the devices alone
        assert float(((found - wanted).abs() <= 1e-4 * wanted.abs().max()).double().mean()) > 0.98


@pytest.mark.counted
@pytest.mark.parametrize("kernels", ["plain", "fused"])
def test_a_gradient_waits_for_nothing(
    networks: list[Network], images: Tensor, labels: Tensor, device: torch.device, kernels: Kernels
) -> None:
    member = Member(freeze(networks[0], kernels).to(device), torch.zeros(CLASSES, networks[0].head.in_features, device=device))
    levels, targets = to_device(images, member.network.mean, kernels), labels.to(device)
    with arithmetic(device, "auto"):
        assert waits(device, partial(gradient, member, levels, targets)) == 0


def test_compiled_kernels_serve_every_checkpoint_with_its_own_weights(
    networks: list[Network], images: Tensor, labels: Tensor, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are compiled once: a second compilation would take as long again, for each checkpoint or for each number of images.

    On a CPU, where compiling takes minutes, the graph is only recorded and run; `test_execution` compiles it there.
    """
    if device.type == "cpu":
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    images, labels = images[:61], labels[:61]  # in parts of 31 and 30
    wanted = gradients(networks, images, labels, CPU, "plain", "float32")
    counters = torch._dynamo.utils.counters
    counters.clear()
    found = gradients(networks, images, labels, device, "compiled", "float32", together=31)
    assert (counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())) == (1, 0)
    assert same_signs(wanted, found) > 0.999
    assert same_signs(wanted, found.flip(0)) < 0.9


def test_auto_is_bf16_where_the_device_has_it(device: torch.device) -> None:
    own = device.type == "cuda" and torch.cuda.get_device_capability() >= (8, 0)
    assert resolve("auto", device) == ("bf16" if own else "tf32" if device.type == "cuda" else "float32")


def test_class_sums_are_those_of_the_cpu_and_repeat_to_the_bit(
    networks: list[Network], images: Tensor, labels: Tensor, device: torch.device
) -> None:
    """Products may round their factors to tf32, 11 bits; sums of the features are exact."""
    for network in map(freeze, networks):
        batches = [(images[:40], labels[:40]), (images[40:], labels[40:])]
        wanted, counts = class_sums(network, batches, CLASSES)
        network.to(device)
        found, counted = class_sums(network, batches, CLASSES)
        turned, _ = class_sums(network, batches[::-1], CLASSES)
        again, _ = class_sums(network, batches, CLASSES)
        assert (found.device.type, found.dtype, counted.device.type) == ("cpu", torch.float64, "cpu")
        assert torch.equal(counted, counts)
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-3 * float(wanted.abs().max()))
        assert torch.equal(found, again)
        assert torch.equal(found, turned)
        assert not torch.equal(found[0], found[1])
