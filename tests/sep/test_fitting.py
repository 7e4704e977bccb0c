from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sep.choices import Precision
from sep.fitting import Epoch, EpochResult, State, accuracy, confusion, fit, optimiser, train_epoch
from sep.models import build
from sep.train_config import TrainConfig
from tests.fixtures.dropping import Dropping

STEPS = 8  # per epoch


def rates(config: TrainConfig) -> list[float]:
    """Return the learning rate of every step of the training."""
    optimizer, scheduler = optimiser(nn.Linear(1, 1), config, STEPS)
    used = []
    for _ in range(config.epochs * STEPS):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return used


def test_step_schedule_is_the_papers() -> None:
    used = rates(TrainConfig())
    epochs = [used[at : at + STEPS] for at in range(0, len(used), STEPS)]
    assert len(epochs) == 120
    assert epochs[0][0] == pytest.approx(0.001)
    assert all(0 < b - a == pytest.approx(0.099 / STEPS) for a, b in pairwise(epochs[0]))
    assert epochs[0][-1] + 0.099 / STEPS == pytest.approx(0.1)
    for epoch, rate in ((1, 0.1), (74, 0.1), (75, 0.01), (89, 0.01), (90, 0.001), (119, 0.001)):
        assert epochs[epoch] == pytest.approx([rate] * STEPS), epoch


def test_one_cycle_rises_to_the_rate_and_ends_near_zero() -> None:
    used = rates(TrainConfig(schedule="one-cycle", epochs=10, lr=0.2))
    peak = used.index(max(used))
    assert max(used) == pytest.approx(0.2, rel=1e-3)
    assert used[0] < 0.02
    assert used[-1] < 1e-4 * 0.2
    assert all(a <= b for a, b in pairwise(used[: peak + 1]))
    assert all(a >= b for a, b in pairwise(used[peak:]))


def test_optimiser_is_sgd_with_the_papers_settings() -> None:
    optimizer, _ = optimiser(nn.Linear(1, 1), TrainConfig(), STEPS)
    assert isinstance(optimizer, torch.optim.SGD)
    assert (optimizer.defaults["momentum"], optimizer.defaults["weight_decay"]) == (0.9, 5e-4)


def test_on_a_cpu_the_steps_are_those_of_plain_sgd() -> None:
    """They agree to the last bit, because protected images depend on every bit."""
    torch.manual_seed(0)
    mine, plain = (build("resnet8", 2, 16, (60.0,) * 3, (60.0,) * 3) for _ in range(2))
    plain.load_state_dict(mine.state_dict())
    config = TrainConfig(epochs=1)
    optimizer, _ = optimiser(mine, config, STEPS)
    reference = torch.optim.SGD(plain.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay, foreach=True)
    before = nn.utils.parameters_to_vector(mine.parameters()).detach().clone()
    reference.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"]
    for _ in range(3):
        for one, other in zip(mine.parameters(), plain.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        optimizer.step()
        reference.step()
    now, expected = (nn.utils.parameters_to_vector(network.parameters()) for network in (mine, plain))
    assert torch.equal(now, expected)
    assert not torch.equal(now, before)
    assert (optimizer.param_groups[0]["foreach"], optimizer.param_groups[0]["fused"]) == (True, False)


def squares(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images of noise with a bright square on the left or on the right, which is the class."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(120, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % 2
    images[labels == 0, :, 4:12, :6] += 100
    images[labels == 1, :, 4:12, -6:] += 100
    return images, labels


def test_a_separable_problem_is_learned_and_seeded() -> None:
    images, labels = squares(64, seed=1)

    def train(seed: int) -> tuple[list[float], Tensor]:
        torch.manual_seed(seed)
        network = build("resnet8", 2, 16, (60.0,) * 3, (60.0,) * 3)
        batches = [(images[at : at + 16], labels[at : at + 16]) for at in range(0, 64, 16)]
        optimizer, scheduler = optimiser(network, TrainConfig(epochs=5, lr=0.05, schedule="one-cycle"), len(batches))
        generator = torch.Generator().manual_seed(seed)
        results = [train_epoch(network, optimizer, scheduler, batches, "crop", generator) for _ in range(5)]
        assert results[-1].loss < 0.2 * results[0].loss
        assert results[-1].accuracy > 95
        return [result.loss for result in results], confusion(network, [squares(40, seed=2)], 2)

    losses, table = train(0)
    assert accuracy(table) > 95
    assert table.sum(1).tolist() == [20, 20]
    assert train(0)[0] == losses


def test_bf16_rounds_products_and_keeps_weights() -> None:
    images, labels = squares(64, seed=1)
    results, weights = {}, {}
    precisions: tuple[Precision, ...] = ("float32", "bf16")
    for precision in precisions:
        torch.manual_seed(0)
        network = build("resnet8", 2, 16, (60.0,) * 3, (60.0,) * 3)
        optimizer, scheduler = optimiser(network, TrainConfig(epochs=5, lr=0.05, schedule="one-cycle"), 4)
        batches = list(zip(torch.split(images, 16), torch.split(labels, 16), strict=True))
        for epoch in range(5):
            draws = torch.Generator().manual_seed(epoch)
            results[precision] = train_epoch(network, optimizer, scheduler, batches, "crop", draws, precision)
        weights[precision] = nn.utils.parameters_to_vector(network.parameters()).detach()
    assert weights["bf16"].dtype == torch.float32
    assert 0 < float((weights["bf16"] - weights["float32"]).norm() / weights["float32"].norm()) < 0.1
    assert results["bf16"].accuracy > 95


def test_a_test_can_round_too() -> None:
    """Features from bf16 products differ; predicted classes do not, unless it is a close call."""
    torch.manual_seed(0)
    network = build("resnet8", 2, 16, (60.0,) * 3, (60.0,) * 3)
    seen: list[torch.dtype] = []
    network.head.register_forward_hook(lambda module, inputs, logits: seen.append(logits.dtype))
    images, labels = squares(64, seed=1)
    optimizer, scheduler = optimiser(network, TrainConfig(epochs=5, lr=0.05, schedule="one-cycle"), 4)
    batches = list(zip(torch.split(images, 16), torch.split(labels, 16), strict=True))
    for _ in range(5):
        train_epoch(network, optimizer, scheduler, batches, "none", torch.Generator())
    seen.clear()
    precisions: tuple[Precision, ...] = ("auto", "bf16")
    tables = [confusion(network, batches, 2, precision) for precision in precisions]
    assert seen == [torch.float32] * 4 + [torch.bfloat16] * 4
    assert torch.equal(*tables)


class Pretend(nn.Module):
    """A network that predicts the level of the first pixel. It has a weight, so that it has a device."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.modes: list[bool] = []

    def forward(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        self.modes.append(self.training)
        return levels, nn.functional.one_hot(levels[:, 0, 0, 0].long(), 3).float()


def test_confusion_has_the_truth_in_rows_over_all_batches() -> None:
    predicted = torch.tensor([0, 1, 1, 2, 0, 2, 2])
    truth = torch.tensor([0, 0, 1, 1, 2, 2, 2])
    images = predicted.view(-1, 1, 1, 1).expand(-1, 3, 2, 2).to(torch.uint8)
    network = Pretend().train()
    table = confusion(network, [(images[:4], truth[:4]), (images[4:], truth[4:])], 3)
    assert table.tolist() == [[1, 1, 0], [0, 1, 1], [1, 0, 2]]
    assert accuracy(table) == pytest.approx(100 * 4 / 7)
    assert network.modes == [False, False]


def test_epoch_result_is_the_mean_over_images_not_batches() -> None:
    """At a learning rate of zero the network never changes, so batches of unequal size must give the loss of the whole set."""
    images, labels = squares(10, seed=1)
    images[7:] = 0
    losses = []
    for cuts in ((0, 10), (0, 7, 10)):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(768, 2))
        pair = Both(network)
        optimizer = torch.optim.SGD(pair.parameters(), lr=0.0)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        batches = [(images[a:b], labels[a:b]) for a, b in pairwise(cuts)]
        losses.append(train_epoch(pair, optimizer, scheduler, batches, "none", torch.Generator()).loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("lr", [1e-3, 1e36])
def test_a_last_step_that_diverges_shows(lr: float) -> None:
    """The loss does not show it, because it is computed before the step."""
    images, labels = squares(10, seed=1)
    network = Both(nn.Sequential(nn.Flatten(), nn.Linear(768, 2)))
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, weight_decay=1e4)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    result = train_epoch(network, optimizer, scheduler, [(images, labels)], "none", torch.Generator())
    assert math.isfinite(result.loss)
    assert result.finite == (lr < 1)


class Both(nn.Module):
    """A network that returns (features, logits), as those of `sep.models` do."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        return levels, self.trunk(levels / 255)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"batch_size": 0}, {"lr": 0.0}])
def test_impossible_settings_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainConfig(**wrong)


@pytest.mark.parametrize("schedule", ["step", "one-cycle"])
def test_a_schedule_is_resumed_by_its_count_of_steps(schedule: Any) -> None:
    """This also holds for another number of steps an epoch, which comes with another number of ranks."""
    config = TrainConfig(epochs=8, schedule=schedule)
    sgd, scheduler = optimiser(nn.Linear(2, 2), config, 5)
    for _ in range(3 * 5):
        sgd.step()
        scheduler.step()
    kept, expected = sgd.state_dict(), []
    for _ in range(5 * 5):
        sgd.step()
        scheduler.step()
        expected.append(sgd.param_groups[0]["lr"])
    for steps in (5, 6):
        sgd, scheduler = optimiser(nn.Linear(2, 2), config, steps)
        sgd.load_state_dict(kept)
        scheduler.last_epoch = 3 * steps
        rates = []
        for _ in range(5 * steps):
            sgd.step()
            scheduler.step()
            rates.append(sgd.param_groups[0]["lr"])
        assert rates[-2] == pytest.approx(expected[-2])  # the rate of the last step; the one after it is never used
        if steps == 5:
            assert rates == pytest.approx(expected)


IMAGES, LABELS = squares(32, seed=1)
SHORT = TrainConfig(epochs=4, lr=0.05, augmentation="crop-flip")


def shuffled(epoch: int) -> list[tuple[Tensor, Tensor]]:
    order = torch.randperm(32, generator=torch.Generator().manual_seed(epoch))
    return [(IMAGES[rows], LABELS[rows]) for rows in torch.split(order, 8)]


def draws(epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(100 + epoch)


def fitted(config: TrainConfig = SHORT, state: State | None = None, stop: int = 99, **more: Any) -> tuple[list[Epoch], Tensor, State]:
    """Return the epochs until a stop, the weights and statistics then, and the state as it would be read from a file."""
    network, epochs = Dropping(), []
    for epoch in fit(network, config, shuffled, 4, draws, state=state, tests=lambda: [(IMAGES, LABELS)], num_classes=2, **more):
        epochs.append(epoch)
        if len(epochs) == stop:
            break
    stream = io.BytesIO()
    torch.save(epochs[-1].state(), stream)
    stream.seek(0)
    values = torch.cat([value.flatten().double() for value in network.state_dict().values()])
    return epochs, values, torch.load(stream, weights_only=True)


def test_an_epoch_knows_how_long_it_waited_for_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only the loaders move on, by 3 s a batch and 5 s a test batch, and what comes before, by 2 s an epoch."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def slow(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in shuffled(epoch):
            clock[0] += 3
            yield batch

    def tests() -> Iterator[tuple[Tensor, Tensor]]:
        clock[0] += 5
        yield IMAGES, LABELS

    def drawn(epoch: int) -> torch.Generator:
        clock[0] += 2
        return draws(epoch)

    epochs = [*fit(Dropping(), SHORT, slow, 4, drawn, tests=tests, num_classes=2)]
    assert [(epoch.waiting_seconds, epoch.seconds) for epoch in epochs] == [(17, 19)] * SHORT.epochs


def test_every_epoch_is_told_and_tested() -> None:
    epochs, _, state = fitted()
    assert [epoch.index for epoch in epochs] == [0, 1, 2, 3]
    assert [epoch.lr for epoch in epochs] == pytest.approx([0.05, 0.05 * 0.1, 0.05 * 0.01, 0.05 * 0.01])
    assert all(epoch.table is not None and epoch.table.sum() == 32 for epoch in epochs)
    assert state["epochs"] == 4
    assert next(iter(fit(Dropping(), SHORT, shuffled, 4, draws))).table is None


@pytest.mark.parametrize("schedule", ["step", "one-cycle"])
@pytest.mark.parametrize("stop", [1, 3])
def test_a_training_in_pieces_is_the_training_in_one(schedule: Any, stop: int) -> None:
    config = replace(SHORT, schedule=schedule)
    whole, expected, _ = fitted(config)
    first, _, state = fitted(config, stop=stop)
    torch.manual_seed(7)  # as in another process
    rest, values, _ = fitted(config, state)
    assert torch.equal(values, expected)
    told = [(epoch.index, epoch.result, epoch.lr) for epoch in [*first, *rest]]
    assert told == [(epoch.index, epoch.result, epoch.lr) for epoch in whole]


def test_a_finished_training_has_no_epoch_left() -> None:
    *_, state = fitted()
    assert list(fit(Dropping(), SHORT, shuffled, 4, draws, state=state)) == []


def test_a_training_that_diverges_ends_with_its_epoch_and_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"^training diverged in epoch 1 \(loss \S+\): lower --the.rate$"):
        fitted(replace(SHORT, lr=1e12, warmup_epochs=0), remedy="lower --the.rate")


def test_a_training_ends_where_another_rank_has_diverged() -> None:
    def others(result: EpochResult) -> EpochResult:
        return replace(result, loss=2.5, finite=False)

    with pytest.raises(ValueError, match=r"epoch 1 \(loss 2.5\)"):
        fitted(average=others)


@pytest.mark.parametrize(("asked", "used"), [("auto", "float32"), ("float32", "float32"), ("bf16", "bf16")])
def test_training_and_tests_compute_in_the_precision_that_is_told(asked: Precision, used: Precision) -> None:
    network = Dropping()
    arguments: dict[str, Any] = {"tests": lambda: [(IMAGES, LABELS)], "num_classes": 2}
    epoch = next(iter(fit(network, replace(SHORT, precision=asked), shuffled, 4, draws, **arguments)))
    assert epoch.precision == used
    assert network.dtypes == [torch.bfloat16 if used == "bf16" else torch.float32] * 5
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_a_change_sees_images_that_are_not_rounded() -> None:
    seen: list[bool] = []

    def change(network: nn.Module, levels: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        seen.append(torch.is_autocast_enabled("cpu"))
        return levels, nn.functional.one_hot(labels, 2).float()

    fitted(replace(SHORT, epochs=1, precision="bf16"), change=change)
    assert seen == [False] * 4
