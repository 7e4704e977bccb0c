"""Noise on the parameters of a network: where it is drawn, what is measured, and what is put back."""

from __future__ import annotations

import torch
from torch import nn

from sep.certificate import distance, smoothed_accuracies
from sep.fitting import Batches
from sep.models import build
from tests.fixtures.threshold import THRESHOLDS, Threshold, batches

SIGMA = 0.5


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def test_every_draw_is_the_accuracy_of_the_network_with_that_noise() -> None:
    network = Threshold(0.2)
    found = list(smoothed_accuracies(network, SIGMA, generators(50), batches, 2))
    shifts = torch.cat([torch.randn(2, generator=generator)[:1] for generator in generators(50)])
    wanted = 100 * (0.2 + SIGMA * shifts[:, None] > THRESHOLDS).float().mean(1)
    assert torch.allclose(torch.tensor(found), wanted)
    assert len(set(found)) > 20


def test_only_the_classes_asked_for_count() -> None:
    def both() -> Batches:
        images, labels = next(iter(batches()))
        return [(images, labels), (images, 0 * labels)]

    network = Threshold(0.2)
    ones, noughts = (list(smoothed_accuracies(network, SIGMA, generators(5), both, 2, classes)) for classes in ((1,), (0,)))
    assert ones == list(smoothed_accuracies(network, SIGMA, generators(5), batches, 2))
    assert all(abs(one + nought - 100) < 1e-3 for one, nought in zip(ones, noughts, strict=True))


def test_the_network_is_afterwards_as_it_was_and_keeps_its_running_statistics_throughout() -> None:
    torch.manual_seed(0)
    network = build("resnet8", 3, 16, [127.0] * 3, [74.0] * 3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    image = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    moved: list[bool] = []

    def watching() -> Batches:
        moved.append(all(not torch.equal(value, before[name]) for name, value in network.named_parameters()))
        assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
        return [(image, torch.zeros(4, dtype=torch.long))]

    for _ in smoothed_accuracies(network, 0.01, generators(3), watching, 3):
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert moved == [True] * 3


def test_the_distance_is_that_of_all_parameters_together() -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    with torch.no_grad():
        for a, b, shift in zip(one.parameters(), other.parameters(), (1.0, 2.0), strict=True):
            b.copy_(a + shift)
    assert abs(distance(one, other) - (4 * 1 + 2 * 4) ** 0.5) < 1e-6
    assert distance(one, one) == 0
