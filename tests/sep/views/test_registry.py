"""Every view: its two forms agree, gradients pass, and images depend neither on each other nor on the draws of another look."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sep.countermeasures import contrastive
from sep.views import codecs
from sep.views.registry import VIEWS, Look, check_mix, view

NUMBERS = {"jpeg": (10, 50, 75, 90, 100), "webp": (20, 75), "bits": (1, 2, 3), "noise": (4,), "simclr": (60, 100)}
NAMES = [name for kind in VIEWS for name in ([f"{kind}-{number}" for number in NUMBERS[kind]] if kind in NUMBERS else [kind])]
DRAWN = ("warp", "noise-4", "band-drop", "resize-crop", "simclr-60", "simclr-100")
# Largest mean difference of the two forms in levels, and largest percentage of values more than two levels apart.
AGREEMENT = {"jpeg": (0.3, 2.5), "blur": (1e-3, 0.0)}


def pictures(height: int, width: int, count: int = 4, seed: int = 0) -> Tensor:
    """Smooth pictures with some grain, `(B, 3, H, W)` uint8, whose darkest and brightest places are cut off."""
    draw = torch.Generator().manual_seed(seed)
    coarse = functional.interpolate(torch.rand(count, 3, 5, 5, generator=draw), (height, width), mode="bicubic")
    grain = 12 * torch.randn(count, 3, height, width, generator=draw)
    return (330 * coarse - 40 + grain).round().clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("size", [(32, 32), (29, 43), (24, 40), (30, 30)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_two_forms_agree(name: str, size: tuple[int, int]) -> None:
    images, look = pictures(*size, count=16), Look(seed=5)
    stored, crafted = view(name).on_stored(images, look), view(name).on_levels(images.float(), look)
    assert stored.dtype == torch.uint8
    assert crafted.shape == images.shape
    assert torch.equal(crafted, crafted.round().clamp(0, 255))
    apart = (stored.float() - crafted).abs()
    mean, far = AGREEMENT.get(name.partition("-")[0], (0.0, 0.0))
    assert float(apart.mean()) <= mean
    assert 100 * float((apart > 2).float().mean()) <= far
    changed = float((crafted - images.float()).abs().mean())
    assert changed > 5 * float(apart.mean()) or name in ("none", "jpeg-100", "resize-crop")


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (6, 1), (7, 3), (4, 4)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_two_forms_agree_on_tiny_pictures(name: str, size: tuple[int, int]) -> None:
    images, look = pictures(*size, count=64), Look(seed=5)
    apart = (view(name).on_stored(images, look).float() - view(name).on_levels(images.float(), look)).abs()
    assert float(apart.mean()) <= (0.5 if name.startswith("jpeg") else 1e-3 if name == "blur" else 0)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_pass_in_any_precision(name: str) -> None:
    for dtype in (torch.float32, torch.float64):
        levels = pictures(32, 32).to(dtype).requires_grad_()
        seen = view(name).on_levels(levels, Look(seed=5))
        (gradient,) = torch.autograd.grad((seen * pictures(32, 32, seed=1).to(dtype)).sum(), levels)
        assert seen.dtype == gradient.dtype == dtype
        assert bool(gradient.isfinite().all())
        assert float((gradient != 0).to(dtype).mean()) > (0.02 if name.startswith("bits") else 0.5)


@pytest.mark.parametrize("name", ["jpeg-10", "simclr-60"])
def test_a_gradient_passes_what_was_computed_once_for_a_test(name: str) -> None:
    for cached in (codecs.dct_basis, codecs._scaled, contrastive._colours):
        cached.cache_clear()
    levels = pictures(32, 32).float()
    with torch.inference_mode():
        seen = view(name).on_levels(levels, Look(seed=5))
    found = view(name).on_levels(levels.requires_grad_(), Look(seed=5))
    torch.autograd.backward(found.sum())
    assert torch.equal(found, seen)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_seen_as_it_would_be_alone(name: str) -> None:
    images, look = pictures(32, 32).float(), Look(seed=3)
    assert torch.equal(view(name).on_levels(images, look)[1:2], view(name).on_levels(images[1:2], look))


@pytest.mark.parametrize("name", NAMES)
def test_draws_are_those_of_the_look(name: str) -> None:
    images = pictures(32, 32).float()
    seen = [view(name).on_levels(images, Look(seed)) for seed in (1, 1, 2, 3, 4)]
    assert torch.equal(seen[0], seen[1])
    assert (name in DRAWN) == any(not torch.equal(seen[0], other) for other in seen[2:])


def test_each_training_image_may_be_distorted_in_its_own_way() -> None:
    images = pictures(32, 32, count=1).float().expand(8, -1, -1, -1)
    together, each = (view("simclr-60").on_levels(images, Look(3, each=own)) for own in (False, True))
    assert len({tuple(image.flatten().tolist()) for image in together}) == 1
    assert len({tuple(image.flatten().tolist()) for image in each}) == 8


def test_a_stronger_distortion_changes_more() -> None:
    images = pictures(32, 32).float()
    changes = [[(view(f"simclr-{s}").on_levels(images, Look(seed)) - images).abs().mean() for seed in range(20)] for s in (1, 30, 60, 100)]
    means = [float(torch.stack(each).mean()) for each in changes]
    assert means == sorted(means)


def test_a_view_leaves_its_input_alone() -> None:
    images = pictures(32, 32)
    levels = images.float()
    for name in NAMES:
        view(name).on_levels(levels, Look())
        view(name).on_stored(images)
    assert torch.equal(levels, images.float())
    assert torch.equal(images, pictures(32, 32))


def test_an_enlarged_view_is_an_antialiased_resize_and_a_crop() -> None:
    from torchvision.transforms import v2

    images = pictures(32, 32)
    found = 0
    for seed in range(12):
        look = Look(seed)
        coin, scale, top, left = torch.rand(4, generator=look.draws).tolist()
        seen = view("resize-crop").on_levels(images.float(), look)
        if coin < 0.5:
            assert torch.equal(seen, images.float())
            continue
        side = round(32 * (1 + 0.75 * scale))
        larger = v2.functional.resize(images, [side, side], antialias=True)
        first, start = round(top * (side - 32)), round(left * (side - 32))
        apart = (seen - larger[..., first : first + 32, start : start + 32].float()).abs()
        assert float(apart.max()) <= 1
        found += 1
    assert 2 <= found <= 10


@pytest.mark.parametrize("name", ["jpeg-0", "jpeg-101", "jpeg", "none-1", "bits-8", "sepia", "jpeg-010", ""])
def test_an_unknown_view_is_refused_with_those_that_are_known(name: str) -> None:
    with pytest.raises(ValueError, match=r"unknown view .*; known are none, jpeg-1 to jpeg-100, webp-1 .*resize-crop"):
        view(name)


def test_a_mix_has_a_view_or_more() -> None:
    check_mix(("none", "jpeg-10", "jpeg-10"))
    with pytest.raises(ValueError, match="a mix needs one view or more"):
        check_mix(())
    with pytest.raises(ValueError, match="unknown view 'sepia'"):
        check_mix(("none", "sepia"))
