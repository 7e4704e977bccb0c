"""The bound of a certificate, against brute force on a network whose quantiles are known, and its words."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.stats import binom, norm
from torch import Tensor

from pipeline.results.certificate import Certificate, Certified, Terms
from tests.fixtures.threshold import THRESHOLDS

TERMS = Terms(q=0.8, eta=0.3, sigma=0.5, draws=200, confidence=0.9)
PLACE = 0.2  # the first parameter of the network; the second is 0


def accuracies(place: Tensor) -> Tensor:
    """The accuracy of networks with these first parameters."""
    return 100 * torch.searchsorted(THRESHOLDS, place.contiguous()) / len(THRESHOLDS)


def drawn(terms: Terms, count: int, shift: float = 0.0) -> Tensor:
    """So many accuracies of the network, moved and with noise."""
    return accuracies(PLACE + shift + terms.sigma * torch.randn(count, generator=torch.Generator().manual_seed(1)))


def test_no_network_within_reach_has_a_higher_quantile_than_the_theorem_says_and_one_has_the_same() -> None:
    at_level = float(accuracies(torch.tensor([PLACE + TERMS.sigma * norm.ppf(TERMS.level)])))
    found = [
        float(drawn(TERMS, 200_000, TERMS.eta * math.cos(angle)).quantile(TERMS.q, interpolation="lower"))
        for angle in torch.linspace(0, 2 * math.pi, 17).tolist()
    ]
    assert max(found) == found[0]
    assert abs(found[0] - at_level) < 0.5  # the bound is tight in the direction in which accuracy grows
    assert max(found) < at_level + 0.5


def test_draws_give_a_true_bound_as_often_as_they_claim_and_the_next_lower_one_does_not() -> None:
    worst = float(accuracies(torch.tensor([PLACE + TERMS.eta + TERMS.sigma * norm.ppf(TERMS.q)])))
    rows = drawn(TERMS, 4000 * TERMS.draws).view(4000, TERMS.draws).sort(1).values
    assert TERMS.bound(rows[0].flip(0).tolist()) == float(rows[0, TERMS.rank - 1])
    true, lower = (float((rows[:, place] >= worst).float().mean()) for place in (TERMS.rank - 1, TERMS.rank - 2))
    assert true >= TERMS.confidence - 3 * math.sqrt(0.09 / 4000)
    assert lower < TERMS.confidence
    assert binom.cdf(TERMS.rank - 2, TERMS.draws, TERMS.level) < TERMS.confidence <= binom.cdf(TERMS.rank - 1, TERMS.draws, TERMS.level)


def test_a_bound_grows_with_reach_and_share_and_confidence_and_more_draws_tighten_it() -> None:
    found = drawn(TERMS, TERMS.draws).tolist()
    changes: dict[str, list[Any]] = {"eta": [0.0, 0.1, 0.3, 0.5], "q": [0.5, 0.7, 0.8, 0.9], "confidence": [0.5, 0.9, 0.99, 0.999]}
    for name, values in changes.items():
        bounds = [replace(TERMS, **{name: value}).bound(found) for value in values]
        assert bounds == sorted(bounds), name
        assert bounds[0] < bounds[-1], name
    places = [replace(TERMS, draws=draws).rank / draws for draws in (100, 400, 1600, 6400)]
    assert places == sorted(places, reverse=True)
    assert TERMS.level < places[-1] < TERMS.level + 0.01
    assert replace(TERMS, eta=0.0).level == pytest.approx(TERMS.q)


@pytest.mark.parametrize(("q", "eta", "confidence"), [(0.9, 0.5, 0.99), (0.5, 0.0, 0.95), (0.99, 1.0, 0.999), (0.7, 1.5, 0.9)])
def test_draws_that_cannot_reach_the_level_are_refused_with_the_number_that_can(q: float, eta: float, confidence: float) -> None:
    fewest = Terms(q=q, eta=eta, sigma=0.5, draws=10**6, confidence=confidence).fewest
    enough = Terms(q=q, eta=eta, sigma=0.5, draws=fewest, confidence=confidence)
    assert enough.rank == fewest
    with pytest.raises(ValueError, match=rf"{fewest - 1} draws are too few .* give --draws {fewest}, or a smaller --eta") as refused:
        replace(enough, draws=fewest - 1)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"q": 1.0}, r"q must be between 0 and 1, as in 0\.9; got 1\.0"),
        ({"confidence": 0.0}, r"confidence must be between 0 and 1"),
        ({"sigma": 0.0}, r"sigma must be above 0 and finite, got 0\.0"),
        ({"sigma": math.nan}, r"sigma must be above 0 and finite, got nan"),
        ({"eta": -1.0}, r"eta must be 0 or more and finite, got -1\.0"),
        ({"eta": 10.0}, r"eta = 10 is too far for sigma = 0\.5, whatever the number of draws"),
    ],
)
def test_terms_that_no_bound_can_meet_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(TERMS, **wrong)


def certificate(clean: float) -> Certificate:
    return Certificate(
        terms=replace(TERMS, q=0.9, eta=0.1, confidence=0.99),
        network="resnet8",
        release_sha256="abc",
        protected=Certified(20.0, 23.45, (20.0, 23.45)),
        clean=Certified(60.0, clean, (clean - 1, clean)),
        distance=41.26,
        guess=10.0,
        tests=1000,
    )


def test_it_says_in_one_line_what_is_certified_and_then_what_that_means_and_does_not_mean() -> None:
    line, means, means_not = str(certificate(61.2)).split("\n")
    assert line == (
        "Certificate: of the networks around any resnet8 within 0.1 of the one trained on this release, 90 % get at most 23.4 % of the "
        "test images right (confidence 99 %)."
    )
    assert means.endswith("Around the one trained on the originals the same bound is 61.2 %.")
    assert "lies 41.3 away" in means_not
    assert certificate(61.2).record()["terms"]["rank"] == certificate(61.2).terms.rank


def test_noise_that_destroys_every_network_certifies_nothing() -> None:
    assert "certifies nothing about the release; give a smaller --sigma" in str(certificate(14.0))
    assert "certifies nothing" not in str(certificate(40.0))
