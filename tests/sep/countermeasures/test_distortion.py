"""TrivialAugment, the warp and the plasma: their effects on pixels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from sep.augment import drawing_from
from sep.countermeasures import distortion
from sep.countermeasures.distortion import WARP_PIXELS, plasma, random_warp, strong, trivial_augment


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ramps(count: int) -> Tensor:
    """Images whose channels are the column, the row and a constant, so that levels tell where a pixel comes from."""
    column = torch.arange(32).float().expand(32, 32)
    return torch.stack([column, column.T, torch.full((32, 32), 100.0)]).expand(count, -1, -1, -1).contiguous()


def test_trivial_augment_does_one_operation_to_each_image() -> None:
    levels = (ramps(300) * torch.tensor([6.0, 6.0, 1.0]).view(3, 1, 1)).clamp(max=250)
    after = trivial_augment(levels, draws(0))
    assert after.dtype == torch.float32
    assert torch.equal(after, after.round().clamp(0, 255))
    assert not torch.equal(after, trivial_augment(levels, draws(1)))
    unchanged = (after == levels).flatten(1).all(1).float().mean()
    assert 0.03 < unchanged < 0.5  # identity is one of 14; some others do nothing at their weakest
    assert len({image.numpy().tobytes() for image in after}) > 100, "images of a batch are drawn for one by one"


def test_trivial_augment_has_the_draws_and_the_pixels_of_torchvision() -> None:
    """Noise, grey and flat images, whose levels rounding could move most easily. Two pixels in a thousand may be a neighbour's."""
    for seed, (height, width) in enumerate([(32, 32), (32, 32), (64, 64), (24, 40)]):
        levels = torch.randint(256, (200, 3, height, width), generator=draws(seed)).float()
        levels[::3], levels[1::3] = levels[::3, :, :1, :1], levels[1::3, :1]
        theirs = v2.TrivialAugmentWide()
        with drawing_from(draws(seed)):
            wanted = torch.stack([theirs(image) for image in levels.to(torch.uint8)]).float()
        apart = (trivial_augment(levels, draws(seed)) != wanted).float().mean()
        assert float(apart) <= (0 if height == width else 0.002)


def test_a_warped_pixel_comes_from_near_by() -> None:
    before = ramps(8)
    after = random_warp(before, draws(0))
    moved = (after - before)[:, :2]
    assert float(moved.abs().max()) <= WARP_PIXELS + 1e-3
    inner = moved[:, :, 3:-3, 3:-3]
    assert float(inner.abs().mean()) > 0.9  # the mean is 1 for a uniform draw from -2 to 2
    assert abs(float(inner.mean())) < 0.1
    assert float(inner.std(0).min()) > 0.1, "every image has shifts of its own"
    neighbours = torch.corrcoef(torch.stack([inner[:, :, :, :-1].flatten(), inner[:, :, :, 1:].flatten()]))[0, 1]
    assert abs(float(neighbours)) < 0.05, "and every pixel"
    assert torch.allclose(after[:, 2], before[:, 2], atol=1e-3)


def test_plasma_is_smooth_and_lies_around_the_middle_of_its_range() -> None:
    fields = plasma(torch.empty(50, 3, 32, 24), draws(0))
    assert fields.shape == (50, 3, 32, 24)
    assert float(fields.min()) >= 0
    assert float(fields.max()) <= 1
    assert abs(float(fields.mean()) - 0.5) < 0.03
    assert float((fields[:, 0] - fields[:, 1]).abs().mean()) > 0.1, "every channel has a field of its own"
    steps = (fields[..., 1:] - fields[..., :-1]).abs().mean()
    apart = (fields - fields.flip(0)).abs().mean()
    assert float(steps) < 0.5 * float(apart)
    assert float(fields.std(0).min()) > 0.05


def test_strong_distortion_lights_contrasts_and_shuffles_half_the_images_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distortion, "one_operation_each", lambda levels, generator: levels)
    flat = torch.tensor([50.0, 60.0, 70.0])[None, :, None, None].expand(800, 3, 16, 16).contiguous()
    after = strong(flat, draws(0))
    even = (after.std((2, 3)) < 1e-3).all(1)  # no change of brightness or contrast
    assert abs(float(even.float().mean()) - 0.25) < 0.06
    ordered = (after[even] - flat[even]).abs().amax((1, 2, 3)) < 1e-3  # half are shuffled, and one order in six is the old one
    assert abs(float(ordered.float().mean()) - (0.5 + 0.5 / 6)) < 0.12


def test_strong_distortion_moves_at_most_half_of_an_image_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """So do its authors: they shift by half of the side at most, the wide space of TrivialAugment by all of it."""
    monkeypatch.setattr(distortion, "CHANCE", 0.0)
    after = strong(torch.full((600, 3, 32, 32), 200.0), draws(0))
    black = (after == 0).float().mean((1, 2, 3))
    moved = black[(black > 0) & (black < 1)]  # an image that is all black was posterised
    assert len(moved) > 100
    assert 0.4 < float(moved.max()) <= 0.5


def test_strong_distortion_leaves_levels_in_range_and_differs_from_image_to_image() -> None:
    levels = ramps(64) * 5
    after = strong(levels, draws(0))
    assert float(after.min()) >= 0
    assert float(after.max()) <= 255
    assert float((after - levels).abs().mean()) > 30
    assert torch.equal(after, strong(levels, draws(0)))
    assert float((after[0] - after[1]).abs().mean()) > 5
