"""The search among transformations: it takes what destroys a texture that a frozen network sees, and leaves clean pictures alone."""

from __future__ import annotations

from statistics import mean

import pytest
import torch
from torch import Tensor

from sep.countermeasures.nonlinear import TRANSFORMATIONS, nonlinear
from sep.fitting import accuracy, confusion, fit
from sep.linear_probe import features_of, linear_probe
from sep.models import Network
from sep.train_config import TrainConfig
from tests.fixtures.shortcut_run import CLASSES, TRAIN, experienced, pictures, textures


@pytest.fixture(scope="module")
def networks() -> list[Network]:
    """Several, because rounding, which differs from processor to processor, decides how much of the texture one of them sees."""
    return [experienced(seed, 2 * TRAIN).eval() for seed in range(3)]


def strong(images: Tensor, labels: Tensor) -> Tensor:
    """The images with a texture of their class of 32 levels."""
    return (images + 4 * textures(1)[labels]).clamp(0, 255).to(torch.uint8)


def frozen(network: Network, images: Tensor, labels: Tensor) -> float:
    """What a linear head on the features of images gets right of other, clean ones, in percent."""
    features, own = features_of(network, [(images, labels)])
    head = linear_probe(features, CLASSES)
    for _ in fit(head, TrainConfig(epochs=60, lr=0.05, augmentation="none"), lambda _: [(features, own)], 1, lambda _: torch.Generator()):
        pass
    return accuracy(confusion(head, [features_of(network, [pictures(150, 1)])], CLASSES))


def test_it_wins_back_what_frozen_networks_lose(networks: list[Network]) -> None:
    images, labels = pictures(TRAIN, 0)
    released = strong(images, labels)
    before, state = released.clone(), torch.get_rng_state()
    found = [nonlinear(lambda _: [(released, labels)], CLASSES, network) for network in networks]
    assert torch.equal(torch.get_rng_state(), state)
    lost = [frozen(network, released, labels) for network in networks]
    assert mean(lost) < 65
    assert mean(frozen(network, change(released), labels) for network, change in zip(networks, found, strict=True)) > mean(lost) + 20
    assert torch.equal(released, before)


def test_clean_pictures_teach_as_much_as_before(networks: list[Network]) -> None:
    images, labels = pictures(TRAIN, 0)
    for network in networks:
        found = nonlinear(lambda _: [(images[:100], labels[:100]), (images[100:], labels[100:])], CLASSES, network)
        assert frozen(network, found(images), labels) > frozen(network, images, labels) - 5


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_a_transformation_keeps_stored_levels_and_its_input(name: str) -> None:
    images, _ = pictures(6, 0)
    before = images.clone()
    after = TRANSFORMATIONS[name](images)
    assert (after.dtype, after.shape) == (torch.uint8, images.shape)
    assert not torch.equal(after, images)
    assert torch.equal(images, before)


def test_the_largest_the_smallest_and_the_middle_of_nine() -> None:
    image = torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3)
    assert [int(TRANSFORMATIONS[name](image)[0, 0, 1, 1]) for name in ("dilated", "eroded", "median")] == [8, 0, 4]
