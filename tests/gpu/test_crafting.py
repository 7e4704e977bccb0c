"""Whole protections: within the budget, what the CPU makes, and the same where the device's memory runs out."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sep.craft import Method, craft
from sep.craft_config import CraftConfig
from sep.ensemble import Member, class_sums, freeze
from sep.execution import MicroBatch
from sep.methods.noise_training import NoiseConfig, Perturbed, minimise
from sep.methods.request import Request, protect
from sep.models import Network, build
from sep.pictures import one_size
from sep.train_config import TrainConfig
from tests.gpu.conftest import CLASSES
from tests.gpu.waiting import waits

LEVELS, STEPS = 4, 3


def members(networks: list[Network], images: Tensor, labels: Tensor, device: torch.device, config: CraftConfig) -> list[Member]:
    """Return the ensemble on a device, with the class means that it has on the CPU."""
    found = []
    for network in networks:
        frozen = freeze(network, config.kernels)
        sums, counts = class_sums(frozen, [(images, labels)], CLASSES)
        means = (sums / counts[:, None]).to(frozen.mean.dtype).to(device) if config.aligns_features else None
        found.append(Member(frozen.to(device), means))
    return found


METHODS = ["sep", "sep-fa", "sep-fa-vr", "sep-fa-drawn"]


@pytest.mark.parametrize("method", METHODS)
def test_a_protection_is_that_of_the_cpu_within_the_budget(
    networks: list[Network], images: Tensor, labels: Tensor, device: torch.device, method: Method
) -> None:
    """A sign in a thousand may differ by rounding in each step, and others follow from it."""
    made = {}
    config = CraftConfig(
        method=method, eps_levels=LEVELS, steps=STEPS, inner_steps=2 if method == "sep-fa-vr" else None, precision="float32"
    )
    for place in (torch.device("cpu"), device):
        ensemble = members(networks, images, labels, place, config)
        made[place.type] = craft(ensemble, images, (labels + 2) % CLASSES, config, torch.Generator().manual_seed(1))
    found, wanted = made[device.type], made["cpu"]
    assert (found.device.type, found.dtype, found.shape) == ("cpu", torch.uint8, images.shape)
    assert int((found.int() - images.int()).abs().max()) == min(LEVELS, STEPS)
    assert float((found != images).double().mean()) > 0.5
    assert float((found == wanted).double().mean()) > 0.97


@pytest.mark.counted
@pytest.mark.parametrize("method", METHODS)
def test_no_step_of_crafting_waits_for_the_device(
    networks: list[Network], images: Tensor, labels: Tensor, device: torch.device, method: Method
) -> None:
    """The images are read at the end, and whether gradients were numbers; before, the device is given them."""
    counts = []
    for steps in (1, 4):
        config = CraftConfig(method=method, steps=steps, inner_steps=2 if method == "sep-fa-vr" else None).resolved()
        ensemble = members(networks, images, labels, device, config)
        crafted = partial(craft, ensemble, images, labels, config, torch.Generator().manual_seed(1))
        counts.append(waits(device, crafted))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("method", METHODS)
def test_the_precision_of_the_device_still_draws_images_to_their_targets(
    networks: list[Network], images: Tensor, labels: Tensor, device: torch.device, method: Method
) -> None:
    """`auto` is bf16 on a GPU. The distance to the wrong class's means, or its cross-entropy, is measured on the CPU."""
    config = CraftConfig(method=method, eps_levels=8, steps=8, inner_steps=2 if method == "sep-fa-vr" else None)
    targets = (labels + 2) % CLASSES
    protected = craft(members(networks, images, labels, device, config), images, targets, config, torch.Generator().manual_seed(1))
    ensemble = members(networks, images, labels, torch.device("cpu"), config)

    @torch.no_grad()
    def loss(levels: Tensor) -> float:
        total = 0.0
        for member in ensemble:
            features, logits = member.network(levels.float())
            if member.means is None:
                total += float(torch.nn.functional.cross_entropy(logits, targets))
            else:
                total += float((features - member.means[targets]).square().mean())
        return total

    noise = torch.randint(2, images.shape, generator=torch.Generator().manual_seed(2)) * 16 - 8
    noisy = (images + noise).clamp(0, 255)
    assert loss(images) - loss(protected) > max(0.04 * loss(images), 10 * abs(loss(images) - loss(noisy)))


def test_noise_of_a_class_is_made_on_the_device(networks: list[Network], images: Tensor, labels: Tensor, device: torch.device) -> None:
    """Through views, with momentum, and one for all channels: within the budget, and by the network and images of the device."""
    rows = labels.to(device)
    data = Perturbed(images.to(device), rows, rows, CLASSES, "grey")
    training = TrainConfig(epochs=1, batch_size=32, lr=0.05)
    seen = ("none", "jpeg-10", "blur")
    config = NoiseConfig(training=training, eps_levels=LEVELS, steps=1, rounds=2, enough=None, momentum=0.9, views=seen)
    network = copy.deepcopy(networks[0]).to(device)
    assert len(list(minimise(network, data, config, torch.Generator().manual_seed(1)))) == 2
    assert (data.levels.device.type, data.levels.shape) == ("cpu", (CLASSES, 1, 16, 16))
    assert 0 < int(data.levels.abs().max()) <= LEVELS
    assert len({tuple(pattern) for pattern in data.levels.flatten(1).tolist()}) == CLASSES


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A CPU whose memory holds no tensor of more than so many bytes: as on a GPU, it runs out within an operation."""

    def __init__(self, limit: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.limit, self.failed = limit, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.numel() * result.element_size() > self.limit:
            self.failed += 1
            raise torch.OutOfMemoryError("out of memory")
        return result


@contextmanager
def scarce(device: torch.device, needed: int, largest: int) -> Iterator[None]:
    """Leave four tenths of the memory that is needed; on a CPU, of its largest tensor."""
    if device.type == "cpu":
        with Largest(int(0.4 * largest)):
            yield
        return
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 0.4 * needed) / total, torch.cuda.current_device())
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, torch.cuda.current_device())


def test_where_memory_runs_out_micro_batches_halve_and_nothing_changes(device: torch.device) -> None:
    """In float64, where sums of another order, as of another algorithm in less memory, turn no sign.

    The GPU's memory is limited in torch's own allocator, so errors are those that it and the libraries below it really raise.
    """
    count, side, width = (512, 32, 16) if device.type == "cuda" else (64, 8, 16)
    torch.manual_seed(0)
    network = build("resnet8", CLASSES, side, [128.0] * 3, [64.0] * 3).double()
    ensemble = [Member(freeze(network).to(device))]
    images = torch.randint(256, (count, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    labels = torch.arange(count) % CLASSES
    config = CraftConfig(method="sep", eps_levels=2, steps=2, precision="float32")

    def crafted(batch: MicroBatch) -> Tensor:
        budget = config.budget(images.shape[1:])
        seeds = range(count)
        request = Request(images, labels, CLASSES, seeds, 0, budget, config=config, members=ensemble, targets=labels.flip(0), batch=batch)
        return one_size(protect(request))

    crafted(MicroBatch(count // 8))  # what libraries set up once
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    batch = MicroBatch(count)
    wanted = crafted(batch)
    assert batch.size == count
    needed = torch.cuda.max_memory_allocated() - before if device.type == "cuda" else 0
    with scarce(device, needed, count * width * side * side * 8):
        found = crafted(batch)
    assert count // 16 <= batch.size <= count // 2  # libraries may make do with less memory than they took
    assert torch.equal(found, wanted)
    assert not torch.equal(found, images)
