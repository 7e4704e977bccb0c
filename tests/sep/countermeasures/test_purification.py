"""Adversaries who purify a release: what their networks learn, and that images without the protection teach a class again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from pipeline.training.batches import InMemory, Split
from sep.countermeasures import bridge as bridges
from sep.countermeasures import d_vae as encoders
from sep.countermeasures.bridge import bridge, on_the_bridge
from sep.countermeasures.countermeasure import Epoch, OfClass
from sep.countermeasures.d_vae import d_vae
from sep.countermeasures.diffusion import diffusion, noised
from sep.countermeasures.restoration import scaled
from tests.fixtures.shortcut_run import CLASSES, pictures, protected, textures

Fitted = Callable[[Epoch, int], OfClass]
KNOWN = 48


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """On images this small, more threads only wait for one another."""
    torch.set_num_threads(1)


def epoch(images: Tensor, others: Tensor) -> Epoch:
    return InMemory(images, others, Split(24, 0)).epoch


def far(images: Tensor, others: Tensor) -> float:
    """Return the root of the mean squared difference, in levels."""
    return float((images.float() - others.float()).square().mean().sqrt())


def test_images_in_a_diffusion_have_the_mean_and_the_variance_of_the_paper() -> None:
    """Equation 4 of Ho et al. 2020: the mean is sqrt(alpha-bar) x, the variance 1 - alpha-bar."""
    image, draws = torch.full((4000, 1, 4, 4), 0.6), torch.Generator().manual_seed(0)
    kept = 1.0
    for timestep in range(1, 101):
        kept *= 1 - (1e-4 + (0.02 - 1e-4) * (timestep - 1) / 999)
        if timestep in (1, 50, 100):
            there = noised(image, torch.full((4000,), timestep), torch.randn(image.shape, generator=draws))
            assert abs(float(there.mean()) - 0.6 * kept**0.5) < 0.005
            assert abs(float(there.var()) / (1 - kept) - 1) < 0.03


def test_a_bridge_begins_at_the_release_and_ends_at_the_clean_image() -> None:
    """In between it is a Brownian bridge: normal about the point on the line, with the most variance half-way."""
    clean, released, draws = torch.full((4000, 1, 4, 4), -0.2), torch.full((4000, 1, 4, 4), 0.4), torch.Generator().manual_seed(0)
    for share in (0.0, 0.3, 0.5, 1.0):
        there = on_the_bridge(clean, released, torch.full((4000,), share), torch.randn(clean.shape, generator=draws))
        assert abs(float(there.mean()) - (-0.2 + 0.6 * share)) < 0.002
        assert abs(float(there.std()) - bridges.NOISE * (share * (1 - share)) ** 0.5) < 0.002


def test_a_rate_is_the_divergence_from_the_standard_normal_distribution() -> None:
    mean, log_variance = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    ours = torch.distributions.Normal(mean, (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(ours, torch.distributions.Normal(0.0, 1.0)).mean()
    assert abs(float(encoders.rate(mean, log_variance) - expected)) < 1e-5


def test_an_auto_encoder_keeps_to_its_rate() -> None:
    images, labels = pictures(96, 0)
    torch.manual_seed(0)
    network = encoders._fitted(epoch(images, labels), CLASSES, 0.3, 60)
    mean, log_variance = network.code(scaled(images))
    assert 0.2 < float(encoders.rate(mean, log_variance)) < 0.33
    assert far(127.5 * (network.decoded(mean) + 1), images) < 0.7 * float(images.float().std())


def learned(function: Fitted, images: Tensor, others: Tensor) -> OfClass:
    """Return a purification, in the making of which torch's own random state stays as it was: the victim draws from it."""
    torch.manual_seed(0)
    state = torch.get_rng_state()
    purified = function(epoch(images, others), CLASSES)
    assert torch.equal(torch.get_rng_state(), state)
    return purified


def left(after: Tensor, without: Tensor, labels: Tensor) -> float:
    """Return the share of the pattern that images still have, beside images that never had it."""
    pattern = textures(1)[labels].float()
    return float(((after - without.float()) * pattern).mean() / pattern.square().mean())


def test_pairs_bring_other_images_nearer_to_clean_ones() -> None:
    clean, labels = pictures(150, 0)
    released = protected(clean, labels, 1)
    purified = learned(partial(bridge, steps=40), released[:KNOWN], clean[:KNOWN])
    after = purified(released[KNOWN:], labels[KNOWN:])
    assert far(after, clean[KNOWN:]) < far(released[KNOWN:], clean[KNOWN:]) / 2
    assert torch.equal(after, purified(released[KNOWN:], labels[KNOWN:]))


def test_a_diffusion_loses_the_pattern_and_not_the_picture() -> None:
    clean, labels = pictures(150, 0)
    released = protected(clean, labels, 1)
    purified = learned(partial(diffusion, steps=100), clean[:KNOWN], labels[:KNOWN])
    after, control = purified(released, labels), purified(clean, labels)
    assert left(after, control, labels) < 0.5
    assert far(control, clean) < float(clean.float().std())
    assert torch.equal(after, purified(released, labels))


def test_what_the_images_of_a_class_have_in_common_is_lost() -> None:
    clean, labels = pictures(240, 0)
    released = protected(clean, labels, 1)
    before = released.clone()
    after = learned(partial(d_vae, steps=100), released, labels)(released, labels)
    assert left(after, clean, labels) < 0.4
    assert far(after, clean) < float(clean.float().std()) / 2
    assert torch.equal(released, before)
