"""Trainings and tests: the same rule on every device, without waiting for it, and the same weights after any stop."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sep.choices import Precision
from sep.fitting import accuracy, confusion, fit, optimiser, train_epoch
from sep.models import build
from sep.train_config import TrainConfig

STEPS = 8  # of an epoch, of eight images each


def squares(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images of noise with a bright square on the left or on the right, which is the class."""
    images = torch.randint(120, (count, 3, 16, 16), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    labels = torch.arange(count) % 2
    images[labels == 0, :, 4:12, :6] += 100
    images[labels == 1, :, 4:12, -6:] += 100
    return images, labels


def in_batches(device: torch.device, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    images, labels = squares(64, seed=1)
    return list(zip(torch.split(images.to(device), size), torch.split(labels.to(device), size), strict=True))


def draws(epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(100 + epoch)


def test_a_step_is_one_kernel_and_the_rule_of_the_cpu(device: torch.device) -> None:
    torch.manual_seed(0)
    networks = [nn.Linear(8, 4), nn.Linear(8, 4).to(device)]
    networks[1].load_state_dict(networks[0].state_dict())
    optimizers = [optimiser(network, TrainConfig(epochs=1), STEPS)[0] for network in networks]
    assert optimizers[1].param_groups[0]["fused"] == (device.type == "cuda")
    for _ in range(3):
        gradients = [torch.randn_like(parameter) for parameter in networks[0].parameters()]
        for network, optimizer in zip(networks, optimizers, strict=True):
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter.grad = gradient.to(parameter.device)
            optimizer.step()
    for one, other in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(one, other.cpu(), rtol=1e-5, atol=1e-7)


class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the reads of a tensor's value, each of which would make the host wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.masked_select.default)
        self.count += func in waits
        return func(*args, **(kwargs or {}))


def waits(device: torch.device, action: Callable[[], object]) -> int:
    """Return how often an action waits for the device: on a GPU by torch's own check, which includes copies."""
    if device.type == "cpu":
        with Reads() as reads:  # type: ignore[no-untyped-call]
            action()
        return int(reads.count)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # several waits may be on one line, which by default warns once
        torch.cuda.set_sync_debug_mode("warn")
        try:
            action()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


def test_nothing_waits_for_the_device_within_an_epoch(device: torch.device) -> None:
    counts = []
    for size in (64, 64, 4):  # the first pass does what is set up once
        network = build("resnet8", 2, 16, (60.0,) * 3, (60.0,) * 3).to(device)
        optimizer, scheduler = optimiser(network, TrainConfig(), 64 // size)
        given = (network, optimizer, scheduler, in_batches(device, size), "crop-flip", torch.Generator(), "bf16")
        counts.append(waits(device, lambda given=given: train_epoch(*given)))  # type: ignore[misc]
    assert counts[1:] == [3, 3]  # at the end: the loss, the accuracy, and whether all is finite


def test_a_separable_problem_is_learned_in_the_precision_of_the_device(device: torch.device) -> None:
    torch.manual_seed(0)
    network = build("resnet8", 2, 16, (60.0,) * 3, (60.0,) * 3).to(device).to(memory_format=torch.channels_last)
    config = TrainConfig(epochs=5, lr=0.05, schedule="one-cycle", augmentation="crop")
    tests = [squares(40, seed=2)]
    epochs = list(fit(network, config, lambda _: in_batches(device), STEPS, draws, tests=lambda: tests, num_classes=2))
    table = epochs[-1].table
    assert table is not None
    assert (table.device.type, table.dtype, table.sum(1).tolist()) == ("cpu", torch.int64, [20, 20])
    assert epochs[-1].precision == ("float32" if device.type == "cpu" else epochs[0].precision)
    assert epochs[-1].result.loss < 0.2 * epochs[0].result.loss
    assert accuracy(table) > 95
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


class Pretend(nn.Module):
    """A network that predicts the level of the first pixel, whatever the precision."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        return levels, nn.functional.one_hot(levels[:, 0, 0, 0].long(), 3).float()


def test_confusion_has_the_truth_in_rows(device: torch.device) -> None:
    predicted = torch.tensor([0, 1, 1, 2, 0, 2, 2])
    truth = torch.tensor([0, 0, 1, 1, 2, 2, 2])
    images = predicted.view(-1, 1, 1, 1).expand(-1, 3, 2, 2).to(torch.uint8)
    precisions: tuple[Precision, ...] = ("auto", "float32")
    for precision in precisions:
        for where in ("cpu", device):
            batches = [(images[:4].to(where), truth[:4].to(where)), (images[4:].to(where), truth[4:].to(where))]
            assert confusion(Pretend().to(device), batches, 3, precision).tolist() == [[1, 1, 0], [0, 1, 1], [1, 0, 2]]


class Dropping(nn.Module):
    """A small network with everything that a state has to hold: weights, statistics, and dropout with torch's own random state."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5))
        self.head = nn.Linear(196, 2)

    def forward(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(levels / 255)
        return features, self.head(features)


def test_a_training_in_pieces_is_the_training_in_one_to_the_bit(device: torch.device) -> None:
    config = TrainConfig(epochs=4, lr=0.05)

    def values(network: nn.Module) -> Tensor:
        return torch.cat([value.flatten().double() for value in network.state_dict().values()]).cpu()

    whole = Dropping().to(device)
    results = [epoch.result for epoch in fit(whole, config, lambda _: in_batches(device), STEPS, draws)]
    torch.manual_seed(0)
    first, stream = Dropping().to(device), io.BytesIO()
    for epoch in fit(first, config, lambda _: in_batches(device), STEPS, draws):
        if epoch.index == 1:
            torch.save(epoch.state(), stream)
            break
    stream.seek(0)
    torch.manual_seed(7)  # as in another process
    rest = Dropping().to(device)
    state = torch.load(stream, map_location="cpu", weights_only=True)
    again = [epoch.result for epoch in fit(rest, config, lambda _: in_batches(device), STEPS, draws, state=state)]
    assert again == results[2:]
    assert torch.equal(values(rest), values(whole))
    assert not torch.equal(values(first), values(whole))
