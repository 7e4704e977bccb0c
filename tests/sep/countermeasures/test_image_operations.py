"""The operations at the end of UEraser's distortions: their effects on pixels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sep.countermeasures import image_operations
from sep.countermeasures.image_operations import OPERATIONS, Operation, one_operation_each

HEIGHT, WIDTH = 16, 32


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def done(name: str, levels: Tensor, strength: float) -> Tensor:
    """Apply one operation to every image."""
    return OPERATIONS[name].change(levels, torch.full((len(levels), 1, 1, 1), strength))


def places() -> Tensor:
    """An image, wider than high, whose channels are the column, the row and a constant, so that levels tell where a pixel comes from."""
    row, column = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    return torch.stack([column, row, torch.full_like(row, 100)]).float()[None]


def noise(*shape: int) -> Tensor:
    return torch.randint(256, shape, generator=draws(0)).float()


def test_a_shift_ends_at_half_of_the_side() -> None:
    before = places()
    for name, side, dim in (("translate-x", WIDTH, 3), ("translate-y", HEIGHT, 2)):
        operation = OPERATIONS[name]
        for strength in (operation.low, operation.high):
            after = done(name, before, strength)
            assert torch.allclose(after, before.roll(int(-strength * side), dim) * (after > 0), atol=1e-3)
            assert float((after[:, 2] == 0).float().mean()) == 0.5, "black moves in"
        assert (operation.low, operation.high) == (-0.5, 0.5)


def test_a_shear_moves_lines_by_their_distance_from_the_middle() -> None:
    before = places()
    for name, channel, distance in (("shear-x", 0, before[:, 1] - (HEIGHT - 1) / 2), ("shear-y", 1, before[:, 0] - (WIDTH - 1) / 2)):
        operation = OPERATIONS[name]
        for slope in (operation.low, 0.1, operation.high):
            after = done(name, before, slope)
            inside = after[:, 2] > 99.99
            assert float(inside.float().mean()) > 0.5
            assert torch.allclose((after - before)[:, channel][inside], (slope * distance)[inside], atol=1e-3)
        assert (operation.low, operation.high) == (-0.3, 0.3)


def test_a_rotation_ends_at_thirty_degrees_and_keeps_shapes() -> None:
    square = noise(2, 3, 8, 8)
    assert torch.allclose(done("rotate", square, 90), square.rot90(1, (2, 3)), atol=1e-3)
    assert torch.allclose(done("rotate", places(), 180), places().flip(2, 3), atol=1e-3)
    assert (OPERATIONS["rotate"].low, OPERATIONS["rotate"].high) == (-30, 30)
    before, middle = places(), torch.tensor([(WIDTH - 1) / 2, (HEIGHT - 1) / 2]).view(1, 2, 1, 1)
    after = done("rotate", before, 30)
    inside = after[:, 2] > 99.99
    was, now = ((image[:, :2] - middle).permute(0, 2, 3, 1)[inside] for image in (before, after))
    assert torch.allclose(was.norm(dim=1), now.norm(dim=1), atol=1e-3), "as far from the middle as before"
    assert torch.allclose((was * now).sum(1), was.norm(dim=1) * now.norm(dim=1) * 3**0.5 / 2, atol=1e-2)


def test_posterising_keeps_the_highest_bits_and_at_worst_none() -> None:
    before = noise(1, 3, 16, 16)
    for strength, bits in ((0.4, 0), (0.6, 1), (2.0, 2), (4.0, 4)):
        after = done("posterize", before, strength)
        assert len(set(after.flatten().tolist())) == 2**bits
        assert torch.equal(after, before.int().bitwise_and(256 - 2 ** (8 - bits)).float())
    assert (OPERATIONS["posterize"].low, OPERATIONS["posterize"].high) == (0, 4)


def test_brightness_is_added_and_contrast_multiplied() -> None:
    before = noise(1, 3, 16, 16)
    assert torch.equal(done("brightness", before, -30), before - 30)
    assert torch.equal(done("brightness", before, OPERATIONS["brightness"].high), before + 229.5)
    assert torch.equal(done("contrast", before, OPERATIONS["contrast"].low), before * 0.1)
    assert torch.equal(done("contrast", before, 1.9), before * 1.9)


def test_solarising_inverts_what_is_bright() -> None:
    assert done("solarize", torch.tensor([10.0, 100.0, 101.0, 255.0]).view(1, 1, 1, 4), 101).flatten().tolist() == [10, 100, 154, 0]


def test_sharpness_goes_from_smooth_to_sharp() -> None:
    before = 60 + noise(1, 3, 16, 16) / 2
    smooth, same, sharp = (done("sharpness", before, factor) for factor in (0.1, 1.0, 1.9))
    assert torch.allclose(same, before, atol=1e-3)
    assert float(smooth.std()) < 0.8 * float(before.std()) < 0.8 * float(sharp.std())


@pytest.mark.parametrize("name", ["auto-contrast", "equalize"])
def test_channels_are_stretched_each_by_itself(name: str) -> None:
    before = noise(2, 3, 64, 64) / torch.tensor([2, 4, 8]).view(3, 1, 1) + 50
    after = done(name, before, 0)
    assert torch.allclose(after.amin((2, 3)), torch.zeros(2, 3), atol=1e-3)
    assert torch.allclose(after.amax((2, 3)), torch.full((2, 3), 255.0), atol=1e-3)


def test_every_image_has_one_operation_of_its_own_with_a_strength_of_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    adding = {"ones": Operation(lambda levels, strengths: levels + strengths, 1, 2), "tens": Operation(torch.add, 10, 20)}
    monkeypatch.setattr(image_operations, "OPERATIONS", adding)
    levels = torch.zeros(2000, 3, 4, 4)
    after = one_operation_each(levels, draws(0))
    assert torch.equal(after.amin((1, 2, 3)), after.amax((1, 2, 3)))
    assert float(levels.abs().max()) == 0, "and the images given are left as they are"
    ones, tens = (added[(added >= low) & (added <= 2 * low)] for added in (after[:, 0, 0, 0],) for low in (1, 10))
    assert len(ones) + len(tens) == 2000
    assert abs(len(ones) - 1000) < 100
    for strengths, low in ((ones, 1), (tens, 10)):
        assert abs(float(strengths.mean()) - 1.5 * low) < 0.03 * low
        assert float(strengths.max() - strengths.min()) > 0.98 * low


def test_a_seed_decides_and_batches_of_any_size_stay_in_range() -> None:
    levels = noise(60, 3, HEIGHT, WIDTH)
    after = one_operation_each(levels, draws(0))
    assert torch.equal(after, one_operation_each(levels, draws(0)))
    assert not torch.equal(after, one_operation_each(levels, draws(1)))
    assert 0 <= float(after.min()) < float(after.max()) <= 255
    assert one_operation_each(levels[:1], draws(0)).shape == levels[:1].shape
    assert one_operation_each(levels[:0], draws(0)).shape == levels[:0].shape
