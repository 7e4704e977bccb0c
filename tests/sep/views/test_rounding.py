"""Roundings: exact forward, and backward the slope that they have on average."""

from __future__ import annotations

import pytest
import torch

from sep.views.registry import Look, view
from sep.views.rounding import as_levels, rounded, slope


def test_halves_go_up_and_gradients_pass() -> None:
    values = torch.tensor([-1.5, -0.5, 0.49, 0.5, 2.5], requires_grad=True)
    assert rounded(values).tolist() == [-1, 0, 0, 1, 3]
    (gradient,) = torch.autograd.grad((rounded(values) * torch.arange(5.0)).sum(), values)
    assert gradient.tolist() == [0, 1, 2, 3, 4]
    assert as_levels(torch.tensor([-3.0, 12.4, 300.0])).tolist() == [0, 12, 255]


@pytest.mark.parametrize("spread", [0.05, 0.2, 0.35])
def test_the_slope_is_that_of_a_dithered_rounding(spread: float) -> None:
    """Against the finite difference of the mean of many dithered roundings."""
    values = torch.linspace(-0.5, 0.5, 21, dtype=torch.float64)
    dither = spread * torch.special.ndtri((torch.arange(40000, dtype=torch.float64) + 0.5) / 40000)
    step = spread / 5

    def mean(at: torch.Tensor) -> torch.Tensor:
        means: torch.Tensor = (at[:, None] + dither).round().mean(1)
        return means

    wanted = (mean(values + step) - mean(values - step)) / (2 * step)
    assert torch.allclose(slope(values, values.round(), spread), wanted, rtol=0.01, atol=0.03 / spread)


def test_the_mean_slope_is_one() -> None:
    values = torch.linspace(-0.5, 0.5, 20001)
    for spread in (0.02, 0.1, 0.3, 0.399, 0.4, 3.0):
        assert float(slope(values, values.round(), spread).mean()) == pytest.approx(1, abs=0.02)


def test_coefficients_out_of_reach_get_nothing() -> None:
    """In a flat picture at quality 10, 8 levels carry coarse waves over a boundary, and never the finest ones."""
    levels = torch.full((1, 3, 8, 8), 128.0, requires_grad=True)
    places = torch.arange(8.0) + 0.5
    passing = []
    for u, v in ((1, 1), (7, 7)):
        wave = torch.cos(torch.pi / 8 * u * places)[:, None] * torch.cos(torch.pi / 8 * v * places)
        (gradient,) = torch.autograd.grad((view("jpeg-10").on_levels(levels, Look(eps_levels=8)) * wave).sum(), levels)
        passing.append(float(gradient.abs().sum() / wave.abs().sum()))
    assert passing[0] > 0.1
    assert passing[1] < 1e-3
