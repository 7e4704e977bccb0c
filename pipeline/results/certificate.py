"""The certificate of a release: a bound on the accuracy of networks near one that was trained on it, and what that bound means.

Wang et al., NDSS 2025, "Provably Unlearnable Data Examples", certified (q, eta)-learnability. The accuracy of a network with normal noise
of deviation sigma on its parameters has a q-quantile. The theorem: nowhere within a distance eta of the network is that quantile above the
quantile `Phi(Phi^-1(q) + eta / sigma)` at the network itself, for moving a normal distribution by eta changes no probability by more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from scipy.stats import binom, norm

from pipeline.results.outcomes import least


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The terms of a certificate.

    Attributes:
        q: share of the networks with noise, around any network within reach, that the bound holds for.
        eta: reach, as an L2 distance between parameters.
        sigma: standard deviation of the noise on each parameter.
        draws: number of networks with noise that are measured.
        confidence: probability that the draws give a true bound.
    """

    q: float
    eta: float
    sigma: float
    draws: int
    confidence: float

    def __post_init__(self) -> None:
        """Refuse terms that no bound can meet.

        Raises:
            ValueError: a number is out of range, or the draws are too few.
        """
        for name in ("q", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be between 0 and 1, as in 0.9; got {getattr(self, name)}")
        if not (self.sigma > 0 and math.isfinite(self.sigma)):
            raise ValueError(f"sigma must be above 0 and finite, got {self.sigma}")
        if not (self.eta >= 0 and math.isfinite(self.eta)):
            raise ValueError(f"eta must be 0 or more and finite, got {self.eta}")
        if self.level == 1:
            raise ValueError(
                f"eta = {self.eta:g} is too far for sigma = {self.sigma:g}, whatever the number of draws: give a smaller --eta"
            )
        if self.draws < self.fewest:
            raise ValueError(
                f"{self.draws} draws are too few for q = {self.q:g}, eta = {self.eta:g}, sigma = {self.sigma:g} and confidence = "
                f"{self.confidence:g}, which need {self.fewest:,}: give --draws {self.fewest}, or a smaller --eta"
            )

    @property
    def level(self) -> float:
        """The quantile at the network itself that bounds the q-quantile at any other within reach."""
        return float(norm.cdf(norm.ppf(self.q) + self.eta / self.sigma))

    @property
    def fewest(self) -> int:
        """The fewest draws with which the largest accuracy among them is a bound."""
        return math.ceil(math.log(1 - self.confidence) / math.log(self.level))

    @property
    def rank(self) -> int:
        """The place, from 1, of the bound among the accuracies in ascending order.

        The accuracy at a place is below the quantile only if at least so many draws are, whose number is binomial at most.
        """
        return int(binom.ppf(self.confidence, self.draws, self.level)) + 1

    def bound(self, accuracies: Sequence[float]) -> float:
        """Return the upper bound that the accuracies of the draws give."""
        assert len(accuracies) == self.draws
        return sorted(accuracies)[self.rank - 1]


@dataclass(frozen=True)
class Certified:
    """A network that was trained on some images, and the bound around it. All figures are percentages of the test images.

    Attributes:
        accuracy: of the network itself.
        bound: certified.
        accuracies: of the network with each draw of the noise.
    """

    accuracy: float
    bound: float
    accuracies: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A bound for a release, beside the same for the originals.

    Attributes:
        terms: what is certified.
        network: architecture.
        release_sha256: digest of the release.
        protected: trained on the release.
        clean: trained on the originals, from the same start.
        distance: between the parameters of the two networks.
        guess: percentage that guessing gets right.
        tests: number of test images.
    """

    terms: Terms
    network: str
    release_sha256: str
    protected: Certified
    clean: Certified
    distance: float
    guess: float
    tests: int

    @property
    def line(self) -> str:
        """The certificate in one line."""
        terms, bound = self.terms, self.protected.bound
        return (
            f"Certificate: of the networks around any {self.network} within {terms.eta:g} of the one trained on this release, "
            f"{100 * terms.q:g} % get at most {bound:.1f} % of the test images right (confidence {100 * terms.confidence:g} %)."
        )

    @property
    def sentences(self) -> tuple[str, ...]:
        """The meaning of the certificate, and its limits."""
        terms, beside = self.terms, f"Around the one trained on the originals the same bound is {self.clean.bound:.1f} %"
        idle = median(self.clean.accuracies) < least(self.guess, self.tests)
        fault = ": such noise destroys what any network has learned, so this certifies nothing about the release; give a smaller --sigma"
        return (
            f"It means: whoever ends at parameters within an L2 distance of {terms.eta:g} from that network, which itself gets "
            f"{self.protected.accuracy:.1f} %, and adds normal noise of {terms.sigma:g} to each, gets no more in {100 * terms.q:g} of 100 "
            f"cases. {beside}{fault if idle else ''}.",
            "It does not mean that nobody can learn from the release: it is about networks near this one, and the one trained on the "
            f"originals from the same start lies {self.distance:.3g} away. It says nothing about renamed predictions, purified images, "
            "pretrained networks, other architectures or other trainings.",
        )

    def __str__(self) -> str:
        """Return the line, and the sentences below it."""
        return "\n".join((self.line, *self.sentences))

    def record(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        found = asdict(self)
        found["terms"] |= {"level": self.terms.level, "rank": self.terms.rank}
        return found | {"line": self.line, "sentences": list(self.sentences)}
