from __future__ import annotations

import math

import pytest
import torch

from sep.budget import Budget, budget_used, check_budget, linf_levels, project, psnr_db, whole_levels


def test_projection_is_the_nearest_level_of_ball_and_scale_for_every_level() -> None:
    levels = torch.arange(256.0)
    clean, x = torch.meshgrid(levels, torch.arange(-20.0, 276.0), indexing="ij")
    for eps in (1, 8, 255):
        projected = project(x, clean, eps)
        low, high = (clean - eps).clamp(min=0), (clean + eps).clamp(max=255)
        assert bool(((projected >= low) & (projected <= high)).all())
        inside = (x >= low) & (x <= high)
        assert torch.equal(projected[inside], x[inside])
        assert torch.equal(projected[x < low], low[x < low])
        assert torch.equal(projected[x > high], high[x > high])


def test_projection_leaves_its_arguments_alone() -> None:
    x, clean = torch.tensor([300.0, -5.0]), torch.tensor([250.0, 3.0])
    assert project(x, clean, 8).tolist() == [255, 0]
    assert x.tolist() == [300, -5]
    assert clean.tolist() == [250, 3]


def test_largest_change_is_counted_in_integers_without_wrapping() -> None:
    clean = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    protected = clean.clone()
    protected[1, 2, 3, 3] = 255  # up from 0: 255 - 0
    clean[2], protected[2] = 255, 254
    assert linf_levels(protected, clean).tolist() == [0, 255, 1]
    assert linf_levels(clean, protected).tolist() == [0, 255, 1]


@pytest.mark.parametrize("start", [0, 247, 100])
def test_eight_levels_pass_and_nine_do_not(start: int) -> None:
    clean = torch.full((5, 3, 4, 4), start, dtype=torch.uint8)
    protected = clean.clone()
    protected[3, 1, 2, 0] = start + 8
    check_budget(protected, clean, Budget("linf", 8))
    check_budget(clean, protected, Budget("linf", 8))
    with pytest.raises(ValueError, match=r"image 3 of 5 changes by 8 levels; the budget is 7"):
        check_budget(protected, clean, Budget("linf", 7))
    if start < 247:
        protected[3, 1, 2, 0] = start + 9
        with pytest.raises(ValueError, match=r"image 3 of 5 changes by 9 levels; the budget is 8"):
            check_budget(protected, clean, Budget("linf", 8))


def test_shapes_must_match_and_images_must_be_stored_levels() -> None:
    clean = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"\(1, 3, 4, 4\).*\(2, 3, 4, 4\)"):
        check_budget(clean[:1], clean, Budget("linf", 8))
    with pytest.raises(AssertionError):
        linf_levels(clean.float(), clean.float())


def test_psnr_is_of_the_mean_squared_error_of_each_image() -> None:
    clean = torch.full((3, 3, 4, 4), 100, dtype=torch.uint8)
    protected = clean.clone()
    protected[1] += 8
    protected[2, 0, 0, 0] -= 48  # mean squared error 48 ** 2 / 48
    assert psnr_db(protected, clean).tolist() == pytest.approx([math.inf, 20 * math.log10(255 / 8), 10 * math.log10(255**2 / 48)])


def test_each_norm_counts_what_was_changed_in_integers() -> None:
    clean = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    protected = clean.clone()
    protected[1, :, 3, 3] = torch.tensor([255, 0, 10], dtype=torch.uint8)
    protected[2] = 255
    assert budget_used(protected, clean, "linf").tolist() == [0, 255, 255]
    assert budget_used(protected, clean, "l2").tolist() == [0, 255**2 + 100, 48 * 255**2]
    assert budget_used(protected, clean, "pixels").tolist() == [0, 1, 16]
    for norm, most, unit in (("l2", 255**2 + 100, "squared levels"), ("pixels", 1, "pixels")):
        check_budget(protected[:2], clean[:2], Budget(norm, most))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=rf"image 1 of 2 changes by {most} {unit}; the budget is {most - 1}"):
            check_budget(protected[:2], clean[:2], Budget(norm, most - 1))  # type: ignore[arg-type]


def test_a_budget_is_written_as_people_write_it() -> None:
    assert [str(Budget("linf", 8)), str(Budget("l2", 65025)), str(Budget("l2", 36 * 3072)), str(Budget("pixels", 1))] == [
        "8/255",
        "L2 1.00",
        "L2 1.30",
        "1 pixel",
    ]


@pytest.mark.parametrize("limit", [1, 300, 65025, 36 * 3072])
def test_rounding_to_whole_levels_stays_within_the_sphere_and_close_to_it(limit: int) -> None:
    draw = torch.Generator().manual_seed(limit)
    change = torch.randn(50, 3, 32, 32, generator=draw, dtype=torch.float64) * 10.0 ** torch.randint(-3, 4, (50, 1, 1, 1), generator=draw)
    change[0] = 0
    levels = whole_levels(change, limit)
    squares = levels.square().flatten(1).sum(1)
    assert bool((squares <= limit).all())
    assert torch.equal(levels, levels.round())
    assert not levels[0].any()
    if limit > 60_000:
        assert float(squares[1:].min()) > 0.99 * limit
        assert float(torch.nn.functional.cosine_similarity(levels[1:].flatten(1), change[1:].flatten(1)).min()) > 0.98
