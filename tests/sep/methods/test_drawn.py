"""Members drawn for each step, momentum and normalised gradients, against the paper's algorithm and a plain loop."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sep.budget import linf_levels
from sep.craft import Method, craft
from sep.craft_config import CraftConfig
from sep.ensemble import Member
from sep.methods.registry import METHODS
from sep.methods.self_ensemble import deal, normalise
from tests.fixtures import reference
from tests.sep.test_craft import Case, K, N, configure, trained

DRAWN: tuple[Method, ...] = ("sep-drawn", "sep-fa-drawn")
PLAIN: dict[Method, Method] = {"sep-drawn": "sep", "sep-fa-drawn": "sep-fa"}


@pytest.fixture(scope="module")
def case() -> Case:
    return trained("resnet8")


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def members_of(case: Case, config: CraftConfig, dtype: torch.dtype = torch.float64) -> list[Member]:
    return case.members(PLAIN.get(config.method, config.method), dtype)


def protect(case: Case, config: CraftConfig, seed: int = 3, dtype: torch.dtype = torch.float64, batch_size: int | None = None) -> Tensor:
    return craft(members_of(case, config, dtype), case.images, case.targets, config, generator(seed), batch_size)


@pytest.mark.parametrize(("members", "per_step"), [(10, 1), (10, 2), (10, 5), (7, 7)])
def test_every_member_has_its_turn_before_any_has_another(members: int, per_step: int) -> None:
    turn = members // per_step
    dealt = deal(3 * turn, per_step, members, generator())
    assert {len(step) for step in dealt} == {per_step}
    rounds = [dealt[start : start + turn] for start in range(0, 3 * turn, turn)]
    assert all(sorted(k for step in steps for k in step) == list(range(members)) for steps in rounds)
    assert turn == 1 or rounds[0] != rounds[1]  # shuffled again
    assert deal(3 * turn, per_step, members, generator()) == dealt
    assert turn == 1 or deal(3 * turn, per_step, members, generator(4)) != dealt


@pytest.mark.parametrize(("members", "per_step", "steps"), [(5, 2, 5), (3, 2, 9), (2, 3, 4)])
def test_a_deck_goes_on_where_a_step_does_not_end_with_it(members: int, per_step: int, steps: int) -> None:
    dealt = deal(steps, per_step, members, generator())
    assert [len(step) for step in dealt] == [per_step] * steps
    turns = [sum(step.count(k) for step in dealt) for k in range(members)]
    assert max(turns) - min(turns) <= 1


@pytest.mark.parametrize("method", DRAWN)
def test_drawing_all_members_at_each_step_is_the_papers_algorithm(case: Case, method: Method) -> None:
    drawn = configure(method, inner_steps=None, members_per_step=N, momentum=0.0, normalised=False)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(protect(case, drawn, dtype=dtype), protect(case, configure(PLAIN[method]), dtype=dtype))


def by_plain_loop(case: Case, config: CraftConfig, index: int, draws: list[list[int]]) -> Tensor:
    """One protected image `(C, H, W)` uint8."""
    fa, momentum = METHODS[config.method].preparation is not None, config.momentum
    points, clean, target = case.points(PLAIN[config.method]), case.images[index].double(), (int(case.labels[index]) + K // 2) % K
    assert momentum is not None
    x, velocity = clean, torch.zeros_like(clean)
    for drawn in draws:
        total = torch.zeros_like(x)
        for k in drawn:
            gradient = reference.gradient_of(points[k], x, target, fa)
            total = total + (gradient / gradient.abs().mean() if config.normalised else gradient)
        velocity = momentum * velocity + (total / total.abs().mean() if config.normalised else total)
        x = reference.step_into_ball(x, velocity, clean, config.eps_levels)
    return x.to(torch.uint8)


@pytest.mark.parametrize("method", DRAWN)
@pytest.mark.parametrize(("per_step", "momentum", "normalised"), [(1, 0.9, True), (2, 0.9, True), (2, 0.5, False), (2, 0.0, True)])
def test_takes_exactly_the_steps_of_a_plain_loop(case: Case, method: Method, per_step: int, momentum: float, normalised: bool) -> None:
    config = configure(method, members_per_step=per_step, momentum=momentum, normalised=normalised)
    draw = generator()
    decks = torch.cat([torch.randperm(N, generator=draw) for _ in range(6)])
    draws = [sorted(decks[per_step * step : per_step * (step + 1)].tolist()) for step in range(config.steps)]
    protected = protect(case, config)
    for index in range(4):
        assert torch.equal(protected[index], by_plain_loop(case, config, index, draws))


def test_usual_settings_are_the_methods(case: Case) -> None:
    for method in DRAWN:
        given = configure(method, members_per_step=1, momentum=0.9, normalised=True)
        assert configure(method).resolved() == given
        assert torch.equal(protect(case, configure(method)), protect(case, given))
    resolved = configure("sep-fa").resolved()
    assert (resolved.members_per_step, resolved.momentum, resolved.normalised) == (None, 0.0, False)
    changed = protect(case, configure("sep-fa", momentum=0.9, normalised=True))
    assert not torch.equal(changed, protect(case, configure("sep-fa")))


@pytest.mark.parametrize(
    "config", [configure("sep-fa-drawn"), configure("sep-drawn", members_per_step=2), configure("sep-fa", momentum=0.5)]
)
def test_micro_batches_and_other_images_decide_nothing(case: Case, config: CraftConfig) -> None:
    wanted = protect(case, config, dtype=torch.float32)
    for size in (1, 7, 20):
        assert torch.equal(protect(case, config, dtype=torch.float32, batch_size=size), wanted)
    alone = craft(members_of(case, config, torch.float32), case.images[13:14], case.targets[13:14], config, generator())
    assert torch.equal(alone, wanted[13:14])
    if METHODS[config.method].members_per_step:
        assert not torch.equal(protect(case, config, seed=5, dtype=torch.float32), wanted)


@pytest.mark.parametrize("method", DRAWN)
@pytest.mark.parametrize("eps_levels", [1, 3])
def test_never_leaves_the_ball(case: Case, method: Method, eps_levels: int) -> None:
    protected = protect(case, configure(method, eps_levels=eps_levels), dtype=torch.float32)
    assert linf_levels(protected, case.images).tolist() == [eps_levels] * len(case.images)


@pytest.mark.parametrize("method", DRAWN)
def test_untargeted_goes_the_other_way_at_the_first_step(case: Case, method: Method) -> None:
    config = configure(method, steps=1, targets="untargeted")
    members = members_of(case, config)
    away, towards = (craft(members, case.images, case.labels, replace(config, targets=t), generator()) for t in ("untargeted", "shift"))
    inside = (case.images > 0) & (case.images < 255)
    assert torch.equal((away.int() - case.images.int())[inside], -(towards.int() - case.images.int())[inside])


def test_a_gradient_is_divided_by_its_mean_magnitude() -> None:
    gradient = torch.tensor([[2.0, -4.0], [0.0, 0.0], [torch.nan, 1.0]]).view(3, 1, 1, 2)
    divided = normalise(gradient).flatten(1)
    assert divided[:2].tolist() == [[2 / 3, -4 / 3], [0, 0]] or torch.allclose(divided[0], torch.tensor([2 / 3, -4 / 3]))
    assert divided[2].isnan().all()


@pytest.mark.parametrize("method", DRAWN)
def test_a_gradient_that_is_no_number_is_refused(case: Case, method: Method) -> None:
    members = case.members(PLAIN[method], torch.float32)
    with torch.no_grad():
        for parameter in members[1].network.parameters():
            parameter.mul_(1e30)
    with pytest.raises(ValueError, match="gradients are not finite"):
        craft(members, case.images, case.targets, configure(method), generator())


@pytest.mark.parametrize(("method", "settings", "gradients"), [("sep-fa-drawn", {}, 15), ("sep-drawn", {"members_per_step": 2}, 30)])
def test_cost_is_that_of_the_drawn_members(method: Method, settings: dict[str, int], gradients: int) -> None:
    config = CraftConfig(method=method, steps=15, **settings)  # type: ignore[arg-type]
    assert (config.per_network, config.gradients_per_image(config.per_network)) == (30, gradients)
    assert config.resolved().gradients_per_image(60) == gradients


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("sep-fa-drawn", {"members_per_step": 0}, "members_per_step must be at least 1, got 0"),
        ("sep-fa-drawn", {"momentum": 1.0}, "momentum must be from 0 up to, not including, 1; got 1.0"),
        ("sep-fa", {"members_per_step": 2}, "members_per_step is not a setting of sep-fa, but of sep-drawn, sep-fa-drawn: leave it out"),
        ("sep-fa-vr", {"momentum": 0.9}, "momentum is not a setting of sep-fa-vr, but of sep, sep-fa, sep-drawn"),
        ("noise", {"normalised": False}, "normalised is not a setting of noise, but of sep, sep-fa, sep-drawn"),
    ],
)
def test_settings_of_other_methods_are_refused_in_one_line(method: Method, settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CraftConfig(method=method, **settings)  # type: ignore[arg-type]
