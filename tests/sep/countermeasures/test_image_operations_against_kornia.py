"""UEraser's operations against those of kornia, the library that its authors call, for parameters that mean the same in both.

`sep` computes them itself, because it runs with torch and torchvision alone. Strengths are ours. The tests convert them for kornia, which
counts levels from 0 to 1 and shears by angles.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sep.countermeasures import distortion
from sep.countermeasures.distortion import WARP_PIXELS, plasma, random_warp, strong
from sep.countermeasures.image_operations import OPERATIONS

kornia = pytest.importorskip("kornia")
augmentation, enhance, geometry = kornia.augmentation, kornia.enhance, kornia.geometry.transform

COUNT, HEIGHT, WIDTH = 13, 24, 32
CLOSE = 0.01  # in levels

Theirs = Callable[[Tensor, Tensor], Tensor]  # images from 0 to 1 and strengths `(N,)` to images


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images() -> Tensor:
    """Smooth images of little contrast, and noise of all levels: wider than high, `(COUNT, 3, HEIGHT, WIDTH)` whole levels."""
    place = torch.arange(WIDTH) + torch.arange(HEIGHT)[:, None]
    waves = 128 + 60 * torch.sin(place / torch.arange(2, 5).view(3, 1, 1)).expand(COUNT // 2, -1, -1, -1)
    noise = torch.randint(256, (COUNT - COUNT // 2, 3, HEIGHT, WIDTH), generator=draws(0))
    return torch.cat([(waves + 10 * torch.randn(waves.shape, generator=draws(1))).round().clamp(0, 255), noise.float()])


def sheared(axis: str) -> Theirs:
    """Return kornia's shear about the middle, by the angle whose tangent is the strength."""

    def shear(x: Tensor, slopes: Tensor) -> Tensor:
        middle = torch.tensor([(WIDTH - 1) / 2, (HEIGHT - 1) / 2]).expand(len(x), 2)
        matrix = geometry.get_shear_matrix2d(middle, **{f"s{axis}": slopes.atan()})
        after: Tensor = geometry.warp_affine(x, matrix[:, :2], (HEIGHT, WIDTH), align_corners=True)
        return after

    return shear


def shifted(sideways: float, down: float) -> Theirs:
    """Return kornia's shift, which counts pixels in the opposite direction: ours gives the place that a pixel is taken from."""
    return lambda x, shares: geometry.translate(x, -shares[:, None] * torch.tensor([sideways * WIDTH, down * HEIGHT]))


THEIRS: dict[str, Theirs] = {
    "auto-contrast": lambda x, _: enhance.normalize_min_max(x),
    "equalize": lambda x, _: enhance.equalize(x),
    "rotate": lambda x, degrees: geometry.rotate(x, degrees),
    "posterize": lambda x, bits: enhance.posterize(x, bits.round().int()),
    "solarize": lambda x, thresholds: enhance.solarize(x, thresholds / 255),
    "contrast": lambda x, factors: enhance.adjust_contrast(x, factors),
    "brightness": lambda x, additions: enhance.adjust_brightness(x, additions / 255),
    "sharpness": lambda x, factors: enhance.sharpness(x, factors),
    "shear-x": sheared("x"),
    "shear-y": sheared("y"),
    "translate-x": shifted(1, 0),
    "translate-y": shifted(0, 1),
}


def ours(name: str, levels: Tensor, strengths: Tensor) -> Tensor:
    return OPERATIONS[name].change(levels, strengths.view(-1, 1, 1, 1)).clamp(0, 255)


def theirs(name: str, levels: Tensor, strengths: Tensor) -> Tensor:
    return 255 * THEIRS[name](levels / 255, strengths)


def farthest(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_gives_the_pixels_of_kornia_over_its_whole_range(name: str) -> None:
    levels = images()
    strengths = torch.linspace(OPERATIONS[name].low, OPERATIONS[name].high, COUNT)
    after = ours(name, levels, strengths)
    assert farthest(after, theirs(name, levels, strengths)) < CLOSE
    assert farthest(after, levels) > 10


def test_ranges_are_those_of_the_policy_that_the_authors_call() -> None:
    """A shear of 0.3 is a slope here. The authors' version of kornia takes it for degrees, later ones for a share of 180 degrees."""
    subpolicies = augmentation.auto.trivial_augment.trivial_augment.default_policy
    policy = {name.replace("_", "-"): (low, high) for ((name, low, high),) in subpolicies}
    assert policy.keys() == OPERATIONS.keys()
    for name in ("rotate", "posterize", "contrast", "sharpness", "shear-x", "shear-y", "translate-x", "translate-y"):
        assert policy[name] == (OPERATIONS[name].low, OPERATIONS[name].high)
    solarize, brightness = OPERATIONS["solarize"], OPERATIONS["brightness"]
    assert policy["solarize"] == (solarize.low / 255, solarize.high / 255)
    assert policy["brightness"] == pytest.approx((1 + brightness.low / 255, 1 + brightness.high / 255))  # its 1 adds nothing


def test_levels_between_whole_ones_are_rounded_before_they_are_equalized() -> None:
    """Kornia truncates them, so that only whole levels give the same result."""
    between = 255 * torch.rand(COUNT, 3, HEIGHT, WIDTH, generator=draws(0))
    none = torch.zeros(COUNT)
    assert farthest(ours("equalize", between, none), theirs("equalize", between.round(), none)) < CLOSE
    assert farthest(ours("posterize", between, none + 3), theirs("posterize", between, none + 3)) < CLOSE


def test_a_flat_channel_is_not_stretched() -> None:
    """Kornia makes it black. We follow torchvision, which leaves it as it is."""
    flat, none = torch.full((1, 3, HEIGHT, WIDTH), 77.0), torch.zeros(1)
    assert torch.equal(ours("auto-contrast", flat, none), flat)
    assert farthest(theirs("auto-contrast", flat, none), torch.zeros_like(flat)) < CLOSE


def test_plasma_lights_and_contrasts_as_in_kornia_and_channels_change_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both get the same draws: two fields, an intensity, and the order of the channels, which shows on flat channels."""
    levels, fields, intensity = images(), [plasma(torch.empty(COUNT, 3, HEIGHT, WIDTH), draws(seed)) for seed in (2, 3)], 0.8
    monkeypatch.setattr(distortion, "CHANCE", 1.0)
    monkeypatch.setattr(distortion, "INTENSITY", (intensity, intensity))
    monkeypatch.setattr(distortion, "one_operation_each", lambda levels, generator: levels)

    def distorted(before: Tensor, *given: Tensor) -> Tensor:
        left = list(given)
        monkeypatch.setattr(distortion, "plasma", lambda like, generator: left.pop(0))
        return strong(before, draws(0))

    neither = torch.full_like(levels, 0.5), torch.full_like(levels, 0.25)  # fields that add nothing and multiply by one
    order = distorted(torch.arange(3.0).view(1, 3, 1, 1).expand_as(levels).contiguous(), *neither)[:, :, 0, 0].round().long()
    assert len({tuple(own) for own in order.tolist()}) > 3
    lit = augmentation.RandomPlasmaBrightness().apply_transform(
        levels / 255, {"plasma": fields[0], "intensity": torch.full((COUNT,), intensity)}, {}
    )
    contrasted = augmentation.RandomPlasmaContrast().apply_transform(lit, {"plasma": fields[1]}, {})
    wanted = 255 * augmentation.RandomChannelShuffle().apply_transform(contrasted, {"channels": order}, {})
    assert farthest(distorted(levels, *fields), wanted) < CLOSE


def test_plasma_is_spread_about_as_kornias() -> None:
    """The fields are not the same: theirs come from the diamond-square algorithm, and the authors' version makes them a little darker."""
    low, high = distortion.ROUGHNESS
    roughness = low + (high - low) * torch.rand(100, generator=draws(0))
    their = kornia.contrib.diamond_square((100, 3, 32, 32), roughness, random_fn=lambda *a, **k: torch.rand(*a, generator=draws(1), **k))
    shares = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    our = plasma(torch.empty(100, 3, 32, 32), draws(0))
    assert torch.allclose(our.flatten().quantile(shares), their.flatten().quantile(shares), atol=0.04)


def test_a_warp_takes_pixels_from_where_kornia_does() -> None:
    levels = images()
    shifts = WARP_PIXELS * (2 * torch.rand(COUNT, HEIGHT, WIDTH, 2, generator=draws(0)) - 1)
    rows, columns = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    wanted = geometry.remap(levels, columns + shifts[..., 0], rows + shifts[..., 1], padding_mode="border", align_corners=True)
    assert farthest(random_warp(levels, draws(0)), wanted) < CLOSE
