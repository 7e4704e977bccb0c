"""Crafting through views: against a plain loop, at no further gradients, and without a byte's difference where there are none."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import sep.craft
from sep.budget import linf_levels
from sep.craft import Method, craft, gradient
from sep.craft_config import CraftConfig
from sep.ensemble import Member, class_sums, freeze
from sep.views.mix import turns
from sep.views.registry import Look, kinds
from tests.fixtures import reference
from tests.sep.test_craft import Case, K, N, configure, trained

MIX = ("none", "jpeg-50", "noise-4", "jpeg-50")
METHODS: tuple[Method, ...] = ("sep", "sep-fa", "sep-fa-vr", "sep-fa-drawn", "tap")


@pytest.fixture(scope="module")
def case() -> Case:
    return trained("resnet8")


def members(case: Case, views: Sequence[str] = MIX, dtype: torch.dtype = torch.float64, method: Method = "sep-fa") -> list[Member]:
    """The ensemble with a member for each checkpoint and view, and that member's own class means."""
    found = []
    for network in case.networks[-1:] if method == "tap" else case.networks:
        frozen = freeze(network.to(dtype))
        for view in kinds(views):
            sums, counts = class_sums(frozen, [(view.on_levels(case.images.to(dtype), Look(9)), case.labels)], K)
            means = (sums / counts[:, None]).to(dtype)
            found.append(Member(frozen, means if configure(method).aligns_features else None, view))
    return found


def protect(
    case: Case, config: CraftConfig, seed: int = 3, views: Sequence[str] = MIX, size: int | None = None, only: slice = slice(None)
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    ensemble = members(case, views, method=config.method)
    return craft(ensemble, case.images[only], case.targets[only], config, generator, size, views)


@pytest.mark.parametrize("method", ["sep", "sep-fa"])
def test_takes_exactly_the_steps_of_a_plain_loop(case: Case, method: Method) -> None:
    config, ensemble, index = configure(method, momentum=0.9, normalised=True), members(case, method=method), 2
    dealt = turns([range(N)] * config.steps, MIX, config.eps_levels, torch.Generator().manual_seed(3))
    clean, target = case.images[index].double(), torch.tensor([(int(case.labels[index]) + K // 2) % K])
    x, velocity = clean, torch.zeros_like(clean)
    for step in dealt:
        total = torch.zeros_like(clean)
        for k, look in step:
            levels = x.clone()[None].requires_grad_()
            features, logits = ensemble[k].network(ensemble[k].view.crafted(levels, look))
            means = ensemble[k].means
            loss = torch.nn.functional.cross_entropy(logits, target) if means is None else (features - means[target]).square().mean()
            (slope,) = torch.autograd.grad(loss, levels)
            total = total + slope[0] / slope.abs().mean()
        velocity = 0.9 * velocity + total / total.abs().mean()
        x = reference.step_into_ball(x, velocity, clean, config.eps_levels)
    generator = torch.Generator().manual_seed(3)
    crafted = craft(ensemble, case.images, case.targets, config, generator, views=MIX)
    assert torch.equal(crafted[index], x.to(torch.uint8))


@pytest.mark.parametrize("method", METHODS)
def test_views_cost_no_further_gradients_and_keep_the_budget(case: Case, method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def counted(member: Member, x: Tensor, targets: Tensor, look: Look, *, ascend: bool) -> Tensor:
        seen.append(member.view.name)
        return gradient(member, x, targets, look, ascend=ascend)

    monkeypatch.setattr(sep.craft, "gradient", counted)
    config = configure(method, inner_steps=2 if method == "sep-fa-vr" else None)
    protected = protect(case, config)
    assert len(seen) == config.gradients_per_image(1 if method == "tap" else N)
    assert set(seen) == {"none", "jpeg-50", "noise-4"}
    assert linf_levels(protected, case.images).tolist() == [config.eps_levels] * len(case.images)
    assert not torch.equal(protected, protect(case, config, views=("none",)))


@pytest.mark.parametrize("method", METHODS)
def test_micro_batches_other_images_and_restarts_decide_nothing(case: Case, method: Method) -> None:
    config = configure(method, steps=3, inner_steps=2 if method == "sep-fa-vr" else None)
    wanted = protect(case, config)
    assert torch.equal(protect(case, config, size=7), wanted)
    assert torch.equal(protect(case, config, only=slice(13, 14)), wanted[13:14])
    assert not torch.equal(protect(case, config, seed=4), wanted)


@pytest.mark.parametrize("method", METHODS)
def test_a_mix_of_none_is_no_mix(case: Case, method: Method) -> None:
    config = configure(method, steps=3)
    ensemble = case.members("sep-fa" if config.aligns_features else "tap" if method == "tap" else "sep")
    plain = craft(ensemble, case.images, case.targets, config, torch.Generator().manual_seed(3))
    assert torch.equal(protect(case, config, views=("none",)), plain)


def test_variance_is_reduced_of_one_function(case: Case) -> None:
    """With one inner step `G = g`, whichever member is drawn: it looks as it did for the outer gradient."""
    config, ensemble = configure("sep-fa-vr", inner_steps=1, steps=1), members(case)
    generator = torch.Generator().manual_seed(3)
    torch.randint(N, (1, 1), generator=generator)
    ((*step,),) = turns([range(N)], MIX, config.eps_levels, generator)
    total = torch.stack([gradient(ensemble[k], case.images.double(), case.targets, look) for k, look in step]).mean(0)
    clean = case.images.double()
    wanted = reference.step_into_ball(clean, total, clean, config.eps_levels).to(torch.uint8)
    crafted = craft(ensemble, case.images, case.targets, config, torch.Generator().manual_seed(3), views=MIX)
    assert float((crafted == wanted).double().mean()) > 0.999  # the sum of the correction may round a zero


def test_features_move_to_the_target_through_the_views_it_was_crafted_for(case: Case) -> None:
    """Crafting through grey alone reaches, in grey, what crafting without views does not reach as far."""
    config = configure("sep-fa")

    def left(images: Tensor) -> float:
        through = members(case, ("gray",))
        apart = [
            (member.network.features(member.view.on_levels(images.double(), Look())) - member.means[case.targets]).square().mean()
            for member in through
            if member.means is not None
        ]
        return float(torch.stack(apart).mean())

    clean = left(case.images)
    with_view, without = left(protect(case, config, views=("gray",))), left(protect(case, config, views=("none",)))
    assert with_view < without < clean
