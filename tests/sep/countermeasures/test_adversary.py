"""Images made hard for a network: within the budget, harder than before, and without a change to the network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sep.at_rest import AtRest
from sep.countermeasures import adversary
from sep.countermeasures.adversary import COPIES, adversarial, ueraser
from sep.countermeasures.distortion import strong
from sep.countermeasures.registry import plan
from sep.fitting import optimiser, train_epoch
from sep.models import Network, build
from sep.train_config import TrainConfig


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem(count: int = 32) -> tuple[Tensor, Tensor]:
    """Images of noise with a bright square on the left or on the right, which is the class."""
    images = torch.randint(120, (count, 3, 16, 16), generator=draws(1)).float()
    labels = torch.arange(count) % 2
    images[labels == 0, :, 4:12, :6] += 40
    images[labels == 1, :, 4:12, -6:] += 40
    return images, labels


@pytest.fixture(scope="module")
def network() -> Network:
    """A network that has learned this problem."""
    torch.manual_seed(0)
    network = build("resnet8", 2, 16, (70.0,) * 3, (40.0,) * 3)
    images, labels = problem()
    optimizer, scheduler = optimiser(network, TrainConfig(epochs=8, lr=0.05, schedule="one-cycle"), 2)
    for _ in range(8):
        batches = zip(torch.split(images, 16), torch.split(labels, 16), strict=True)
        train_epoch(network, optimizer, scheduler, batches, "none", draws(0))
    return network


def probabilities(labels: Tensor) -> Tensor:
    return functional.one_hot(labels, 2).float()


@pytest.mark.parametrize("eps_levels", [4, 8])
def test_adversarial_images_are_harder_and_within_the_budget(network: Network, eps_levels: int) -> None:
    change = plan(f"adversarial-{eps_levels}").change(2)
    assert change is not None
    levels, labels = problem()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    network.zero_grad(set_to_none=True)
    moved, targets = change(AtRest(network), levels, labels, draws(0))
    assert network.training
    assert torch.equal(targets, probabilities(labels))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not moved.requires_grad
    change_in_levels = (moved - levels).abs()
    assert float(change_in_levels.max()) <= eps_levels + 1e-4
    assert float(change_in_levels.max()) > 0.99 * eps_levels
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 255
    noisy_levels = (levels + eps_levels * (2 * torch.rand(levels.shape, generator=draws(2)) - 1)).clamp(0, 255)
    with AtRest(network) as resting:
        plain, hard, noisy = (resting.losses(each, targets) for each in (levels, moved, noisy_levels))
    assert float(hard.mean()) > 2 * float(plain.mean())
    assert float(hard.mean()) > 1.5 * float(noisy.mean())
    assert float((hard > plain).float().mean()) > 0.95


class Unfolded(nn.Module):
    """The same network without folding, as on a GPU."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.network(levels)
        return features, logits


def test_folding_moves_images_as_the_network_itself_would(network: Network) -> None:
    levels, labels = problem()
    unfolded = Unfolded(network).train()
    folded, plain = (adversarial(AtRest(each), levels, probabilities(labels), draws(0), eps_levels=8) for each in (network, unfolded))
    assert unfolded.training
    assert network.training
    # The sign of a slope near zero may be either.
    assert float(torch.isclose(folded, plain, atol=1e-3).float().mean()) > 0.99


def test_a_larger_budget_is_harder_and_the_start_is_random(network: Network) -> None:
    levels, labels = problem()
    targets = probabilities(labels)
    hard = []
    for eps_levels in (4, 8):
        moved = adversarial(AtRest(network), levels, targets, draws(0), eps_levels=eps_levels)
        with AtRest(network) as resting:
            hard.append(float(resting.losses(moved, targets).mean()))
    assert hard[1] > hard[0]
    assert not torch.equal(moved, adversarial(AtRest(network), levels, targets, draws(1), eps_levels=8))


def test_levels_out_of_range_stay_within_the_budget(network: Network) -> None:
    """A projection leaves such levels."""
    levels, labels = problem()
    levels = levels - 60
    moved = adversarial(AtRest(network), levels, probabilities(labels), draws(0), eps_levels=4)
    assert float((moved - levels).abs().max()) <= 4 + 1e-4


def test_training_on_hard_images_makes_the_network_robust() -> None:
    """This is the purpose: the network mistakes fewer of the hard images than one trained plainly."""
    images, labels = problem(64)
    robust = {}
    for name in ("none", "adversarial-8"):
        torch.manual_seed(0)
        network = build("resnet8", 2, 16, (70.0,) * 3, (40.0,) * 3)
        optimizer, scheduler = optimiser(network, TrainConfig(epochs=10, lr=0.05, schedule="one-cycle"), 4)
        for epoch in range(10):
            batches = zip(torch.split(images, 16), torch.split(labels, 16), strict=True)
            train_epoch(network, optimizer, scheduler, batches, "none", draws(epoch), change=plan(name).change(2))
        network.eval()
        moved = adversarial(AtRest(network), images, probabilities(labels), draws(9), eps_levels=8)
        robust[name] = float((network(moved)[1].argmax(1) == labels).float().mean())
    assert robust["adversarial-8"] > robust["none"] + 0.2


class Brightness(nn.Module):
    """A network that is the surer of class 0, the brighter an image."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: list[bool] = []

    def forward(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        self.modes.append(self.training)
        score = levels.mean((1, 2, 3)) / 10
        return levels, torch.stack([score, torch.zeros_like(score)], 1)


def test_ueraser_takes_for_each_image_the_copy_with_the_largest_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """With this network, that is the darkest copy for class 0 and the brightest for class 1."""
    copies = [torch.full((4, 3, 8, 8), level) for level in (50.0, 20.0, 90.0, 70.0, 60.0)]
    copies[1][2:] = 95.0
    monkeypatch.setattr(adversary, "strong", lambda levels, generator: torch.cat(copies))
    network = Brightness().train()
    targets = probabilities(torch.tensor([0, 1, 0, 1]))
    chosen = ueraser(AtRest(network), torch.zeros(4, 3, 8, 8), targets, draws(0))
    assert chosen[:, 0, 0, 0].tolist() == [20.0, 90.0, 50.0, 95.0]
    assert network.modes == [False] * COPIES
    assert network.training


def test_ueraser_gives_larger_losses_than_one_strong_distortion(network: Network) -> None:
    levels, labels = problem()
    targets = probabilities(labels)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    chosen = ueraser(AtRest(network), levels, targets, draws(0))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with AtRest(network) as resting:
        single = strong(torch.cat([levels] * COPIES), draws(0))[: len(levels)]  # the first of the copies
        hard, first = (resting.losses(each, targets) for each in (chosen, single))
    assert bool((hard >= first).all())
    assert float(hard.mean()) > 1.2 * float(first.mean())
