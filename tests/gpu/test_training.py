"""Trainings and tests: the same rule on every device, without waiting for it, and the same weights after any stop."""

from __future__ import annotations

import io
import threading
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sep import fitting
from sep.at_rest import AtRest
from sep.choices import Precision
from sep.countermeasures.registry import plan
from sep.execution import moved
from sep.fitting import accuracy, confusion, fit, optimiser
from sep.models import build
from sep.recording import WARM_UP, Recorder
from sep.step import Step
from sep.train_config import TrainConfig
from sep.trunks import TRUNKS
from tests.fixtures.dropping import Dropping
from tests.gpu.waiting import waits

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


def weights(network: nn.Module) -> Tensor:
    """Return a copy of all of them in a row."""
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


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


@pytest.mark.counted
def test_nothing_waits_for_the_device_within_an_epoch(device: torch.device) -> None:
    """Three values are read at its end: the loss, the accuracy, and whether all is finite. A test reads its table, and no batch."""
    counts = []
    for size in (64, 4):
        network = build("resnet8", 2, 16, (60.0,) * 3, (60.0,) * 3).to(device)
        batches, tests = in_batches(device, size), in_batches(torch.device("cpu"), size)
        given = (network, TrainConfig(epochs=6, lr=1e-3), partial(_itself, batches), 64 // size, draws)
        epochs = fit(*given, tests=partial(_itself, tests, 0), num_classes=2)
        for _ in range(5):  # recorded in the fourth step, which is in the fourth epoch if each has one
            next(epochs)
        counts.append(waits(device, partial(next, epochs)))
    assert counts == [3 + (device.type == "cuda")] * 2  # a table on a CPU need not be copied there


@pytest.mark.counted
@pytest.mark.parametrize("recorded", [False, True])
def test_no_step_waits_for_the_device(device: torch.device, recorded: bool) -> None:
    """The one that is recorded does not count: memory is freed for it."""
    network = build("resnet8", 2, 16, (60.0,) * 3, (60.0,) * 3).to(device)
    step = Step(network, optimiser(network, TrainConfig(epochs=1), STEPS)[0], "float32", recorded=recorded)
    batch = torch.full((8, 3, 16, 16), 60.0, device=device), torch.zeros(8, dtype=torch.long, device=device)
    for _ in range(WARM_UP + 1):
        step(*batch)
    assert waits(device, lambda: step(*batch)) == 0


@pytest.mark.counted
def test_a_search_for_hard_images_is_recorded_at_the_first_batch_and_follows_the_training(device: torch.device) -> None:
    """It takes seven gradients a batch. On a CPU none is recorded."""
    network = build("resnet8", 2, 16, (60.0,) * 3, (60.0,) * 3).to(device)
    levels, targets = torch.full((8, 3, 16, 16), 60.0, device=device), torch.ones(8, 2, device=device) / 2
    recorded, change = AtRest(network, recorded=device.type == "cuda"), plan("adversarial-8").change(2)
    assert change is not None
    change(recorded, levels, torch.zeros(8, dtype=torch.long, device=device), draws(0))
    found = recorded._of_slopes
    assert (isinstance(found, Recorder) and found.recording is not None) == (device.type == "cuda")
    for _ in range(2):
        with torch.no_grad():
            network.head.weight.mul_(2)
        with recorded, AtRest(network) as plain:
            assert recorded.slopes(levels, targets).shape == plain.slopes(levels, targets).shape == levels.shape
    assert network.training


def test_other_threads_go_on_while_a_step_is_recorded(device: torch.device) -> None:
    """They read ahead: they ask for memory, pin it, and copy and launch on the stream of all."""
    network = build("resnet8", 2, 16, (60.0,) * 3, (60.0,) * 3).to(device).to(memory_format=torch.channels_last)
    done, sums = threading.Event(), list[Tensor]()

    def read_ahead() -> None:
        while not done.is_set():
            sums.append(moved(torch.ones(len(sums) % 64 + 1, 100), device).sum())

    reader = threading.Thread(target=read_ahead)
    reader.start()
    try:
        for _ in range(3):
            (epoch,) = fit(network, TrainConfig(epochs=1, lr=1e-3), partial(_itself, in_batches(device)), STEPS, draws)
            assert epoch.result.finite
    finally:
        done.set()
        reader.join()
    # one by one: where CI is set, pytest explains how two lists differ, and with thousands of numbers that takes it hours
    assert all(float(each) == 100.0 * (place % 64 + 1) for place, each in enumerate(sums))
    assert len(sums) > 10


def _itself(batches: list[tuple[Tensor, Tensor]], epoch: int) -> list[tuple[Tensor, Tensor]]:
    return batches


@pytest.mark.parametrize("countermeasure", ["none", "adversarial-8", "ueraser"])
def test_recorded_steps_are_plain_steps(device: torch.device, monkeypatch: pytest.MonkeyPatch, countermeasure: str) -> None:
    """Also where the last batch is smaller. Not even rounding should differ; a GPU's libraries promise no more than rounding."""
    images, labels = (part.to(device) for part in squares(76, seed=1))
    batches = list(zip(torch.split(images, 16), torch.split(labels, 16), strict=True))
    opened: list[Step] = []

    class Noted(Step):
        def __init__(self, *given: Any, recorded: bool) -> None:
            super().__init__(*given, recorded=recorded)
            opened.append(self)

    monkeypatch.setattr(fitting, "Step", Noted)
    results, found = [], []
    for recorded in (True, False):
        torch.manual_seed(0)
        network = build("resnet8", 2, 16, (60.0,) * 3, (60.0,) * 3).to(device).to(memory_format=torch.channels_last)
        config = TrainConfig(epochs=4, lr=0.02, schedule="one-cycle", augmentation="crop", precision="float32", recorded=recorded)
        epochs = fit(network, config, partial(_itself, batches), 5, draws, change=plan(countermeasure).change(2))
        results.append([epoch.result.loss for epoch in epochs])
        found.append(weights(network))
    recorders = [step.run for step in opened if isinstance(step.run, Recorder)]
    assert [isinstance(step.run, Recorder) for step in opened] == [device.type == "cuda", False]
    assert all(recorder.recording is not None and len(recorder.recording.given[0]) == 16 for recorder in recorders)
    assert results[0] == pytest.approx(results[1], rel=1e-3)
    assert float((found[0] - found[1]).norm() / found[1].norm()) < 1e-3
    assert countermeasure != "none" or results[0][-1] < 0.8 * results[0][0]


@pytest.mark.counted
def test_only_a_step_that_was_warmed_up_is_recorded(device: torch.device) -> None:
    """By batches of its own shape. On a CPU none is."""
    network = build("resnet8", 2, 16, (60.0,) * 3, (60.0,) * 3).to(device)
    step = Step(network, optimiser(network, TrainConfig(epochs=1), STEPS)[0], "float32", recorded=True)
    recorded = []
    for size in (8, 8, 4, 8, 8, 8, 8, 4):
        step(torch.full((size, 3, 16, 16), 60.0, device=device), torch.zeros(size, dtype=torch.long, device=device))
        recorded.append(len(step.run.recording.given[0]) if isinstance(step.run, Recorder) and step.run.recording else None)
    assert recorded == [None] * 6 + [8 if device.type == "cuda" else None] * 2


@pytest.mark.parametrize("name", TRUNKS)
def test_the_step_of_every_network_can_be_recorded(device: torch.device, name: str) -> None:
    """Nothing in it may wait for the device. On a CPU one step is plain."""
    torch.manual_seed(0)
    network = build(name, 2, 32, (60.0,) * 3, (60.0,) * 3).to(device).to(memory_format=torch.channels_last)
    before = weights(network)
    batch = torch.rand(4, 3, 32, 32, device=device) * 255, torch.arange(4, device=device) % 2
    steps = 1 if device.type == "cpu" else WARM_UP + 2
    config = TrainConfig(epochs=1, lr=1e-3, warmup_epochs=0)
    (epoch,) = fit(network, config, partial(_itself, [batch] * steps), steps, draws)
    assert epoch.result.finite
    assert not torch.equal(weights(network), before)


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
