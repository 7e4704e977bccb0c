"""What the perturbations that follow no ensemble do to pixels, each held to what its paper says of it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sep.budget import Budget, budget_used, check_budget
from sep.methods.autoregressive import EDGE, ORDER, STRONGEST, answer, autoregressive, field, processes, steady
from sep.methods.one_pixel import moments, search
from sep.methods.registry import METHODS, Method
from sep.methods.request import Request
from sep.pictures import one_size

K, EACH, SIDE = 10, 12, 32
PATTERNS: tuple[Method, ...] = ("linear-separable", "autoregressive")


def request(method: Method, images: Tensor, seed: int = 5, prepared: Tensor | None = None) -> Request:
    """Images of K classes in turn, with a seed each."""
    budget, count = METHODS[method].budget(8, images.shape[1:]), len(images)
    return Request(images, torch.arange(count) % K, K, [1000 * seed + i for i in range(count)], seed, budget, prepared)


def grey(count: int = K * EACH) -> Tensor:
    """Images in which no change is clipped."""
    return torch.full((count, 3, SIDE, SIDE), 128, dtype=torch.uint8)


def noisy(count: int = K * EACH) -> Tensor:
    """Images of all levels, of which many are at the ends."""
    drawn = 128 + 90 * torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    return drawn.clamp(0, 255).to(torch.uint8)


def perturbed(of: Request, method: Method) -> Tensor:
    perturb = METHODS[method].perturb
    assert perturb is not None
    return one_size(perturb(of))


def change(of: Request, method: Method) -> Tensor:
    """What was done to each image, in whole levels."""
    return perturbed(of, method).int() - one_size(of.images).int()


@pytest.mark.parametrize("method", PATTERNS)
@pytest.mark.parametrize("images", [grey(), noisy()], ids=["grey", "noisy"])
def test_a_pattern_spends_its_budget_and_no_more(method: Method, images: Tensor) -> None:
    of = request(method, images)
    protected = perturbed(of, method)
    assert protected.dtype == torch.uint8
    check_budget(protected, images, of.budget)
    used = budget_used(protected, images, "l2") / of.budget.limit
    clipped = bool((images != 128).any())
    assert float(used.min()) > (0.6 if clipped else 0.95)  # the levels of a patch are rounded together


def test_budgets_are_those_of_the_papers() -> None:
    for method, radius in (("linear-separable", 6 / 255 * math.sqrt(3 * 32 * 32)), ("autoregressive", 1.0)):
        budget = METHODS[method].budget(8, (3, 32, 32))  # type: ignore[index]
        assert budget.norm == "l2"
        assert math.sqrt(budget.limit) / 255 == pytest.approx(radius, rel=1e-9)
        assert METHODS[method].budget(8, (3, 64, 64)).limit == 4 * budget.limit  # type: ignore[index]  # the same change of each value
    assert METHODS["one-pixel"].budget(8, (3, 32, 32)) == Budget("pixels", 1)
    assert METHODS["error-min"].budget(4, (3, 32, 32)) == Budget("linf", 4)


@pytest.mark.parametrize("method", PATTERNS)
def test_an_image_is_perturbed_by_its_own_seed_and_its_class_alone(method: Method) -> None:
    """Whatever images are beside it, and in whatever order."""
    of = request(method, noisy())
    whole = perturbed(of, method)
    some = torch.tensor([37, 3, 88])
    alone = replace(of, images=of.images[some], classes=of.classes[some], seeds=[of.seeds[i] for i in some.tolist()])
    assert torch.equal(perturbed(alone, method), whole[some])
    assert not torch.equal(perturbed(replace(alone, seeds=[1, 2, 3]), method), whole[some])
    assert not torch.equal(perturbed(replace(alone, seed=6), method), whole[some])


def accuracy_of_a_linear_model(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Percent of the test points that softmax regression on the training points gets right."""
    torch.manual_seed(0)
    scale = train[0].std()
    model = nn.Linear(train[0].shape[1], K)
    adam = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        adam.zero_grad()
        loss = functional.cross_entropy(model(train[0] / scale), train[1])
        torch.autograd.backward(loss)
        adam.step()
    return 100 * float((model(test[0] / scale).argmax(1) == test[1]).float().mean())


def test_a_linear_model_tells_the_classes_apart_by_the_linearly_separable_pattern_alone() -> None:
    """Also those of images it has not seen; by random signs of the same size it cannot."""
    of, half = request("linear-separable", grey()), K * EACH // 2
    points = change(of, "linear-separable").flatten(1).float()
    train, test = (points[:half], of.classes[:half]), (points[half:], of.classes[half:])
    assert accuracy_of_a_linear_model(train, test) == 100
    signs = torch.randint(2, points.shape, generator=torch.Generator().manual_seed(2)) * 2.0 - 1
    assert accuracy_of_a_linear_model((signs[:half], train[1]), (signs[half:], test[1])) < 40


def test_the_linearly_separable_pattern_is_a_grid_of_flat_patches() -> None:
    levels = change(request("linear-separable", grey(20)), "linear-separable")
    patches = levels.view(20, 3, 4, 8, 4, 8)
    assert torch.equal(patches.amax((3, 5)), patches.amin((3, 5)))
    assert torch.unique(patches[:, :, :, 0, :, 0].flatten(1), dim=0).shape == (20, 48)  # no two images are alike, also of one class


def test_the_autoregressive_pattern_obeys_its_recurrence_up_to_rounding() -> None:
    """Every level follows from the eight before it in its window, by the coefficients of its class and channel."""
    of = request("autoregressive", grey(40))
    levels = change(of, "autoregressive").double()
    coefficients = processes(K, 3, SIDE, SIDE, of.seed)
    windows = levels.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)  # (B, C, H - 2, W - 2, 9)
    for classes, exact in ((of.classes, True), ((of.classes + 1) % K, False)):
        own = coefficients[classes][:, :, None, None]
        residual = (windows[..., 8] - (windows[..., :8] * own).sum(-1)).abs()
        rounding = (0.5 * (1 + own.abs().sum(-1))).expand_as(residual)
        assert bool((residual <= rounding + 1e-6).all()) is exact
    assert int(levels.abs().amax()) > 4


def fields(coefficients: Tensor, seed: int) -> Tensor:
    """One of each process, `(P, C, H, W)`, from a start of its own."""
    size = (*coefficients.shape[:2], SIDE + EDGE, SIDE + EDGE)
    return field(coefficients, torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def test_autoregressive_processes_are_the_papers_kind() -> None:
    found = processes(K, 3, SIDE, SIDE, 3)
    assert found.shape == (K, 3, ORDER)
    torch.testing.assert_close(found.sum(-1), torch.ones(K, 3, dtype=torch.float64))
    assert torch.equal(found, processes(K, 3, SIDE, SIDE, 3))
    assert not torch.equal(found, processes(K, 3, SIDE, SIDE, 4))
    strength = fields(found, 9).square().mean((1, 2, 3)).sqrt()  # of other fields than it was chosen by
    assert float(strength.median()) < STRONGEST
    assert float(strength.max()) < 2


def test_filters_tell_autoregressive_classes_apart() -> None:
    """A process's own filter is silent, and those of the others answer: far more than where processes are taken as they come."""
    found = processes(K, 3, SIDE, SIDE, 3)
    others = ~torch.eye(K, dtype=torch.bool)
    made = fields(found, 9)
    answers = torch.stack([answer(one, made) for one in found])
    assert float(answers.diagonal().max()) < 1e-12
    chance = torch.randn(2000, 3, ORDER, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    chance /= chance.sum(-1, keepdim=True)
    steady = fields(chance, 6).square().mean((1, 2, 3)).sqrt() <= STRONGEST
    taken = chance[steady][:K]
    by_chance = torch.stack([answer(one, fields(taken, 7)) for one in taken])
    assert float(answers[others].min()) > 2 * float(by_chance[others].min())
    assert float(answers[others].min()) > 0.15


def test_each_image_has_a_start_of_its_own() -> None:
    levels = change(request("autoregressive", grey(2 * K)), "autoregressive")
    assert len({tuple(image.flatten().tolist()) for image in levels}) == 2 * K


def score(images: Tensor, row: int, column: int, colour: tuple[int, ...]) -> float:
    """The objective of the one-pixel paper, in plain Python: mean over variance of the distance to a colour."""
    distances = [sum(abs(int(image[c, row, column]) - colour[c]) for c in range(3)) for image in images]
    mean = sum(distances) / len(distances)
    return mean / max(1.0, sum((d - mean) ** 2 for d in distances) / len(distances))


def small(count: int = 30) -> tuple[Tensor, Tensor]:
    """Images of 5 x 4 pixels in three classes, whose pixels differ in how steady they are."""
    draw = torch.Generator().manual_seed(4)
    spread = torch.rand(5, 4, generator=draw) * 60
    images = 100 + 50 * torch.rand(3, 5, 4, generator=draw) + spread * torch.randn(count, 3, 5, 4, generator=draw)
    return images.clamp(0, 255).to(torch.uint8), torch.arange(count) % 3


def test_one_pixel_search_finds_the_best_place_and_colour_by_brute_force() -> None:
    images, classes = small()
    found = search(*moments(images, classes, 3)).tolist()
    colours = [(r, g, b) for r in (0, 255) for g in (0, 255) for b in (0, 255)]
    taken: list[tuple[int, ...]] = []
    for label, (row, column, *colour) in enumerate(found):
        own = images[classes == label]
        places = [(i, j, *c) for i in range(5) for j in range(4) for c in colours if (i, j, *c) not in taken]
        best = max(places, key=lambda place: score(own, place[0], place[1], place[2:]))
        assert (row, column, *colour) == best
        taken.append(best)


def test_one_pixel_moments_add_up_over_shards() -> None:
    images, classes = small()
    whole = moments(images, classes, 3)
    parts = [moments(images[some], classes[some], 3) for some in (slice(7), slice(7, 20), slice(20, None))]
    for total, *shares in zip(whole, *parts, strict=True):
        assert torch.equal(total, sum(shares))


def test_classes_that_look_the_same_get_different_shortcuts() -> None:
    images, _ = small(20)
    twice, classes = images.repeat_interleave(2, 0), torch.arange(40) % 2
    first, second = search(*moments(twice, classes, 2)).tolist()
    assert first != second


def test_one_pixel_changes_one_pixel_to_the_same_colour_within_a_class() -> None:
    images = noisy()
    of = request("one-pixel", images)
    of = replace(of, prepared=search(*moments(images, of.classes, K)))
    protected = perturbed(of, "one-pixel")
    check_budget(protected, images, of.budget)
    assert budget_used(protected, images, "pixels").tolist() == [1] * len(images)  # no image had its colour before
    shortcuts = set()
    for label in range(K):
        own = of.classes == label
        places = torch.unique((protected[own] != images[own]).any(1).flatten(1).int().argmax(1))
        colours = torch.unique(protected[own].flatten(2)[:, :, int(places)], dim=0)
        assert (len(places), len(colours)) == (1, 1)
        assert set(colours.flatten().tolist()) <= {0, 255}
        shortcuts.add((int(places), *colours.flatten().tolist()))
    assert len(shortcuts) == K


def test_noise_of_a_class_is_the_same_for_its_images_and_that_of_an_image_is_its_own() -> None:
    images, classes = grey(2 * K), torch.arange(2 * K) % K
    table = torch.randint(-8, 9, (K, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(3), dtype=torch.int16)
    assert torch.equal(change(request("error-min-class", images, prepared=table), "error-min-class"), table[classes].int())
    own = torch.randint(-8, 9, (2 * K, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(3), dtype=torch.int16)
    assert torch.equal(change(request("error-min", images, prepared=own), "error-min"), own.int())
    ends = torch.tensor([0, 255], dtype=torch.uint8).repeat(K)[:, None, None, None].expand(-1, 3, SIDE, SIDE).contiguous()
    clipped = perturbed(request("error-min", ends, prepared=own), "error-min").int()
    assert torch.equal(clipped, (ends.int() + own).clamp(0, 255))


def test_processes_that_are_left_early_are_those_that_diverge() -> None:
    draws = torch.Generator().manual_seed(0)
    drawn = torch.randn(300, 3, ORDER, generator=draws, dtype=torch.float64)
    drawn /= drawn.sum(-1, keepdim=True)
    start = torch.randn(300, 3, 20, 16, generator=draws, dtype=torch.float64)
    whole = field(drawn, start)
    limited = whole.square().mean((1, 2, 3)).sqrt() <= STRONGEST
    assert 3 < int(limited.sum()) < 100
    found, made = steady(drawn, start)
    assert torch.equal(found, drawn[limited])
    assert torch.equal(made, whole[limited])


def test_autoregressive_draws_do_not_depend_on_the_number_of_images() -> None:
    of = request("autoregressive", grey(3))
    assert torch.equal(autoregressive(of), autoregressive(request("autoregressive", grey(9)))[:3])
