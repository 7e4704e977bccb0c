from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import sep.craft
from sep.budget import linf_levels
from sep.craft import Method, craft, gradient
from sep.craft_config import CraftConfig
from sep.ensemble import Member, class_sums, freeze
from sep.methods.registry import METHODS
from sep.models import Network, build
from sep.objective import shifted
from sep.pictures import one_size
from sep.views.registry import Look
from tests.fixtures import reference

K, N, M, SIDE = 5, 3, 4, 8
CRAFTED: tuple[Method, ...] = ("sep", "sep-fa", "sep-fa-vr", "tap", "noise")


@dataclass(frozen=True)
class Case:
    """Images, their labels, and an ensemble trained on them, as the library and as the reference have it."""

    images: Tensor  # (20, 3, SIDE, SIDE) uint8
    labels: Tensor
    networks: list[Network]

    @property
    def targets(self) -> Tensor:
        return shifted(self.labels, K)

    def members(self, method: Method, dtype: torch.dtype = torch.float64) -> list[Member]:
        """The library's ensemble for a method."""
        if method == "noise":
            return []
        frozen = [freeze(network.to(dtype)) for network in self.networks]
        if method == "tap":
            return [Member(frozen[-1])]
        if method == "sep":
            return [Member(network) for network in frozen]
        sums = [class_sums(network, [(self.images, self.labels)], K) for network in frozen]
        return [Member(network, (s / n[:, None]).to(dtype)) for network, (s, n) in zip(frozen, sums, strict=True)]

    def points(self, method: Method) -> list[reference.Checkpoint]:
        """The reference's ensemble for a method."""
        points = [reference.checkpoint(network, self.images, self.labels.tolist(), K) for network in self.networks]
        return points[-1:] if method == "tap" else points


def trained(name: str) -> Case:
    """Return three checkpoints with really different weights, running statistics and class means."""
    draw = torch.Generator().manual_seed(7)
    labels = torch.arange(20) % K
    waves = 90 * torch.sin(torch.arange(SIDE) * (labels[:, None] + 1.0) / 2)[:, None, None, :]
    noise = 60 * torch.randn(20, 3, SIDE, SIDE, generator=draw)
    images = (128 + waves + noise).clamp(0, 255).round().to(torch.uint8)  # with many values at 0 and 255
    networks = []
    for seed in range(N):
        torch.manual_seed(seed)
        network = build(name, K, SIDE, [120.0, 125.0, 130.0], [60.0, 65.0, 70.0])
        sgd = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
        for _ in range(3 + 3 * seed):
            sgd.zero_grad()
            functional.cross_entropy(network(images.float())[1], labels).backward()  # type: ignore[no-untyped-call]
            sgd.step()
        networks.append(network)
    return Case(images, labels, networks)


@pytest.fixture(scope="module")
def case() -> Case:
    return trained("resnet8")


def configure(method: Method, **values: Any) -> CraftConfig:
    return CraftConfig(method=method, **{"eps_levels": 4, "steps": 6, "checkpoints": N, "inner_steps": M, **values})


def protect(case: Case, config: CraftConfig, seed: int = 0, dtype: torch.dtype = torch.float64, only: slice = slice(None)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return craft(case.members(config.method, dtype), case.images[only], case.targets[only], config, generator)


def by_reference(case: Case, config: CraftConfig, seed: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randint(N, (config.inner_steps or N,), generator=generator).tolist() for _ in range(config.steps)]
    points = case.points(config.method)
    pairs = zip(case.images[:count], case.labels[:count].tolist(), strict=True)
    return torch.stack(
        [reference.protect_image(config.method, points, image, label, K, config.eps_levels, draws) for image, label in pairs]
    )


def hold_to_the_reference(case: Case, config: CraftConfig, count: int) -> None:
    wanted = by_reference(case, config, seed=3, count=count)
    assert torch.equal(protect(case, config, seed=3, only=slice(count)), wanted)
    assert set(linf_levels(wanted, case.images[:count]).tolist()) == {config.eps_levels}  # long enough to meet the edge of the ball
    single = protect(case, config, seed=3, dtype=torch.float32, only=slice(count))
    assert float((single != wanted).double().mean()) < 0.01


@pytest.mark.parametrize("method", ["sep", "sep-fa", "sep-fa-vr", "tap"])
def test_takes_exactly_the_steps_of_the_brute_force_reference(case: Case, method: Method) -> None:
    hold_to_the_reference(case, configure(method), count=6)


@pytest.mark.slow
def test_takes_exactly_the_steps_of_the_reference_with_another_network() -> None:
    case = trained("resnet18")
    methods: tuple[Method, ...] = ("sep", "sep-fa", "sep-fa-vr")
    for method in methods:
        hold_to_the_reference(case, configure(method, steps=3, eps_levels=2, inner_steps=2), count=2)


@pytest.mark.parametrize("method", ["sep", "sep-fa", "sep-fa-vr"])
def test_untargeted_moves_away_from_the_true_class(case: Case, method: Method) -> None:
    """Against the reference, descending on its negative loss; and by what it is for: the loss of the true class rises."""
    config = configure(method, targets="untargeted")
    away = craft(case.members(method), case.images, case.labels, config, torch.Generator().manual_seed(3))
    towards = craft(case.members(method), case.images, case.labels, replace(config, targets="shift"), torch.Generator().manual_seed(3))

    def loss(images: Tensor) -> float:
        pairs = list(zip(images.double(), case.labels.tolist(), strict=True))
        with torch.no_grad():
            losses = [reference.loss_of(p, image, label, method != "sep") for p in case.points(method) for image, label in pairs]
        return float(torch.stack(losses).mean())

    assert loss(away) > loss(case.images) > loss(towards)
    first = craft(case.members(method), case.images[:1], case.labels[:1], replace(config, steps=1), torch.Generator().manual_seed(3))
    point, image = case.points(method), case.images[0].double()
    if method != "sep-fa-vr":  # whose first step has inner steps
        mean = torch.stack([reference.gradient_of(p, image, int(case.labels[0]), method != "sep") for p in point]).mean(0)
        assert torch.equal(first[0], reference.step_into_ball(image, -mean, image, 4).to(torch.uint8))


def test_reference_and_library_agree_with_central_differences(case: Case) -> None:
    """The gradient is the derivative of the method's formula, on networks nobody folded or froze."""
    width = 1e-4
    both: tuple[tuple[Method, bool], ...] = (("sep", False), ("sep-fa", True))
    for method, fa in both:
        for member, point in zip(case.members(method), case.points(method), strict=True):
            image, target = case.images[1].double(), int(case.targets[1])
            ours = gradient(member, image[None], torch.tensor([target]))[0].flatten()
            theirs = reference.gradient_of(point, image, target, fa).flatten()
            assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-10)  # class means are rounded to 2^-24
            for pixel in range(0, 3 * SIDE * SIDE, 17):
                nudge = torch.zeros_like(image).flatten()
                nudge[pixel] = width
                with torch.no_grad():
                    up, down = (reference.loss_of(point, image + sign * nudge.view_as(image), target, fa) for sign in (1, -1))
                assert float(ours[pixel]) == pytest.approx(float((up - down) / (2 * width)), rel=1e-4, abs=1e-9)


def test_checkpoints_and_their_means_really_differ(case: Case) -> None:
    members = case.members("sep-fa")
    for a in range(N):
        for b in range(a):
            first, second = members[a].means, members[b].means
            assert first is not None
            assert second is not None
            assert float((first - second).norm() / first.norm()) > 0.1


class Mispaired:
    """The fault of the authors' code: in the inner loop the drawn network meets the *last* checkpoint's class means."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members, self.calls = members, 0

    def __call__(self, member: Member, x: Tensor, targets: Tensor, look: Look, *, ascend: bool) -> Tensor:
        inner = self.calls % (N + 1) == N  # with one inner step, every (N + 1)th gradient
        self.calls += 1
        return gradient(Member(member.network, self.members[-1].means) if inner else member, x, targets, look, ascend=ascend)


def test_first_inner_step_has_the_ensembles_gradient_whichever_checkpoint_is_drawn(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one inner step `G = g`, so sep-fa-vr must be sep-fa; with another member's class means it is not."""
    plain, reduced = configure("sep-fa"), configure("sep-fa-vr", inner_steps=1)
    wanted = protect(case, plain)
    drawn = set()
    for seed in range(4):
        drawn |= set(torch.randint(N, (1,), generator=torch.Generator().manual_seed(seed)).tolist())
        assert torch.equal(protect(case, reduced, seed), wanted)
    assert drawn == set(range(N))

    monkeypatch.setattr(sep.craft, "gradient", Mispaired(case.members("sep-fa")))
    assert not torch.equal(protect(case, reduced, seed=0), wanted)


def test_inner_draws_come_from_the_generator(case: Case) -> None:
    config = configure("sep-fa-vr")
    assert torch.equal(protect(case, config, seed=1), protect(case, config, seed=1))
    assert not torch.equal(protect(case, config, seed=1), protect(case, config, seed=2))


@pytest.mark.parametrize("method", ["sep", "sep-fa", "sep-fa-vr", "tap"])
def test_an_image_does_not_depend_on_its_batch(case: Case, method: Method) -> None:
    config = configure(method, steps=4)
    together = protect(case, config)
    for index in (0, 13):
        assert torch.equal(protect(case, config, only=slice(index, index + 1)), together[index : index + 1])


@pytest.mark.parametrize("method", ["sep-fa", "sep-fa-vr", "noise"])
def test_micro_batches_decide_nothing(case: Case, method: Method) -> None:
    config = configure(method, steps=3)
    results = []
    for size in (20, 7, None):
        generator = torch.Generator().manual_seed(1)
        results.append(craft(case.members(method), case.images, case.targets, config, generator, size))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("method", CRAFTED)
@pytest.mark.parametrize("eps_levels", [1, 3])
def test_never_leaves_the_ball(case: Case, method: Method, eps_levels: int) -> None:
    """In float32, as it is used; more steps than levels, on images with many values at the ends of the scale."""
    assert {0, 255} <= set(case.images.flatten().tolist())
    protected = protect(case, configure(method, eps_levels=eps_levels, steps=6), dtype=torch.float32)
    assert protected.dtype == torch.uint8
    assert protected.shape == case.images.shape
    assert linf_levels(protected, case.images).tolist() == [eps_levels] * len(case.images)


@pytest.mark.parametrize("eps_levels", [127, 128, 255])
def test_noise_of_a_budget_beyond_a_signed_byte_is_as_large_as_asked_for(eps_levels: int) -> None:
    images = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    protected = craft((), images, torch.zeros(2, dtype=torch.int64), configure("noise", eps_levels=eps_levels), torch.Generator())
    assert set(protected.flatten().tolist()) == {0, min(255, 100 + eps_levels)}


def test_noise_moves_every_value_by_the_whole_budget_and_is_seeded(case: Case) -> None:
    config = configure("noise")
    protected = protect(case, config, seed=5)
    inside = (case.images >= 4) & (case.images <= 251)
    change = protected.int() - case.images.int()
    assert set(change[inside].tolist()) == {-4, 4}
    assert abs(float(change[inside].double().mean())) < 0.5
    assert torch.equal(protect(case, config, seed=5), protected)
    assert not torch.equal(protect(case, config, seed=6), protected)


@pytest.mark.parametrize("method", ["sep", "sep-fa", "sep-fa-vr"])
def test_the_ensembles_loss_falls_as_random_changes_cannot_make_it(case: Case, method: Method) -> None:
    """What the steps are for, measured by the reference's formula."""

    def loss(images: Tensor) -> float:
        pairs = list(zip(images.double(), case.targets.tolist(), strict=True))
        with torch.no_grad():
            losses = [reference.loss_of(p, image, target, method != "sep") for p in case.points(method) for image, target in pairs]
        return float(torch.stack(losses).mean())

    before = loss(case.images)
    crafted = loss(protect(case, configure(method, eps_levels=16, steps=16)))
    noisy = loss(protect(case, configure("noise", eps_levels=16)))
    assert crafted < 0.85 * before
    assert noisy > 0.95 * before


@pytest.mark.parametrize("method", ["sep", "sep-fa", "sep-fa-vr"])
def test_an_image_is_not_released_as_it_is_because_a_gradient_is_no_number(case: Case, method: Method) -> None:
    """One checkpoint of three has finite weights that overflow."""
    members = case.members(method, torch.float32)
    with torch.no_grad():
        for parameter in members[1].network.parameters():
            parameter.mul_(1e30)
    with pytest.raises(ValueError, match="gradients are not finite"):
        craft(members, case.images, case.targets, configure(method), torch.Generator())


def test_a_method_that_exceeds_its_budget_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    brighter = replace(METHODS["noise"], perturb=lambda request: one_size(request.images) + 9)
    monkeypatch.setitem(METHODS, "noise", brighter)
    with pytest.raises(ValueError, match="changes by 9 levels; the budget is 8"):
        craft((), torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2), CraftConfig(method="noise"), torch.Generator())


@pytest.mark.parametrize("method", ["linear-separable", "autoregressive"])
def test_patterns_need_no_ensemble(case: Case, method: Method) -> None:
    def protected(seed: int) -> Tensor:
        return craft((), case.images, case.labels, CraftConfig(method=method), torch.Generator().manual_seed(seed))

    assert torch.equal(protected(1), protected(1))
    assert not torch.equal(protected(1), protected(2))


def test_ensemble_must_be_what_the_method_asks_for(case: Case) -> None:
    draw = torch.Generator()
    for given, asked in (("noise", "sep"), ("sep", "noise"), ("sep", "sep-fa"), ("sep-fa", "sep")):
        with pytest.raises(AssertionError):
            craft(case.members(given), case.images, case.targets, configure(asked), draw)  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        craft(case.members("sep"), case.images.float(), case.targets, configure("sep"), draw)


@pytest.mark.parametrize(("method", "members", "gradients"), [("sep", 30, 900), ("sep-fa", 30, 900), ("tap", 1, 30), ("noise", 0, 0)])
def test_cost_is_the_methods(method: Method, members: int, gradients: int) -> None:
    config = CraftConfig(method=method)
    assert (config.per_network, config.gradients_per_image(config.per_network)) == (members, gradients)


def test_cost_with_variance_reduction_is_the_methods() -> None:
    config = CraftConfig(method="sep-fa-vr")
    assert config.per_network == 15
    assert config.gradients_per_image(15) == replace(config, inner_steps=15).gradients_per_image(15) == 870


@pytest.mark.parametrize("wrong", [{"eps_levels": 0}, {"eps_levels": 256}, {"steps": 0}, {"checkpoints": 0}, {"inner_steps": 0}])
def test_impossible_settings_are_refused_by_name(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CraftConfig(**wrong)  # type: ignore[arg-type]
