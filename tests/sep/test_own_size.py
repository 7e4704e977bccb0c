"""Crafting pictures of many sizes, each at its own: held to the budget, to a plain loop, and to bytes that depend on nothing else."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from sep.budget import linf_levels
from sep.countermeasures.projection import class_residual
from sep.craft_config import CraftConfig
from sep.ensemble import Member, class_sums, freeze
from sep.execution import MicroBatch
from sep.methods.error_minimising import resized
from sep.methods.registry import Method
from sep.methods.request import Request, protect
from sep.methods.self_ensemble import normalise
from sep.models import build
from sep.pictures import Pictures, apart, flat, joined, mapped, unflat
from sep.quality import ssim
from sep.views import own_size
from sep.views.operations import Window, cut
from sep.views.own_size import fixed_view, training_view
from sep.views.registry import Look, OwnSize, view
from tests import ROOT

SIDE, K = 16, 3
SIZES = ((20, 31), (40, 24), (16, 16), (33, 22), (27, 27))
CRAFTED: tuple[Method, ...] = ("sep", "sep-fa", "sep-fa-vr", "sep-fa-drawn", "tap", "noise")


def pictures(sizes: tuple[tuple[int, int], ...] = SIZES, seed: int = 0) -> Pictures:
    """Noise that is alike within a few pixels, so that a resize leaves something of it."""
    draw = torch.Generator().manual_seed(seed)
    coarse = [torch.randint(256, (1, 3, 6, 6), generator=draw).float() for _ in sizes]
    return Pictures([interpolate(x, size, mode="bilinear")[0].round().to(torch.uint8) for x, size in zip(coarse, sizes, strict=True)])


def ensemble(config: CraftConfig, images: Pictures, labels: Tensor) -> list[Member]:
    if not config.kind.surrogate:
        return []
    members = []
    for seed in range(1 if config.method == "tap" else 3):
        torch.manual_seed(seed)
        network = freeze(build("resnet8", K, SIDE, [128.0] * 3, [64.0] * 3))
        sums, counts = class_sums(network, [(fixed_view(images, SIDE), labels)], K)
        members.append(Member(network, (sums / counts[:, None]).float() if config.aligns_features else None))
    return members


def test_a_pattern_that_was_resized_to_pictures_is_removed_from_each_at_its_own_size() -> None:
    draw = torch.Generator().manual_seed(1)
    patterns = 8 * torch.randint(2, (K, 3, SIDE, SIDE), generator=draw).float().mul(2).sub(1)
    clean, labels = pictures(60 * SIZES), torch.arange(60 * len(SIZES)) % K
    added = [interpolate(patterns[label][None], image.shape[1:], mode="bilinear")[0] for label, image in zip(labels, clean, strict=True)]
    released = Pictures([(x + d).round().clamp(0, 255).to(torch.uint8) for x, d in zip(clean, added, strict=True)])
    small = own_size.whole_view(released, SIDE)
    change = own_size.fitted_at_input_size(class_residual(lambda _: [(small, labels)], K), SIDE)

    def left(images: Pictures | list[Tensor]) -> float:
        """The share of the patterns that is still there."""
        parts = [((y - x.float()) * d).sum() / d.square().sum() for y, x, d in zip(images, clean, added, strict=True)]
        return float(torch.stack(parts).mean())

    after = [change(image[None], label[None])[0] for image, label in zip(released, labels, strict=True)]
    assert [image.shape for image in after] == [image.shape for image in clean]
    assert left(released) > 0.9
    assert left(after) < 0.5


def request(config: CraftConfig, images: Pictures, only: slice = slice(None), size: int = 2) -> Request:
    labels = torch.arange(len(images)) % K
    return Request(
        images=images[only],
        classes=labels[only],
        num_classes=K,
        seeds=list(range(100, 100 + len(images)))[only],
        seed=1,
        budget=config.budget((3, 1, 1)),
        config=config,
        members=ensemble(config, images, labels),
        targets=((labels + 1) % K)[only],
        generator=torch.Generator().manual_seed(3),
        view_draws=torch.Generator().manual_seed(4),
        batch=MicroBatch(size),
        input_size=SIDE,
    )


def crafted(config: CraftConfig, images: Pictures, only: slice = slice(None), size: int = 2) -> Pictures:
    protected = protect(request(config, images, only, size))
    assert isinstance(protected, Pictures)
    return protected


@pytest.mark.parametrize("method", CRAFTED)
def test_every_picture_keeps_its_size_and_the_budget_and_is_changed(method: Method) -> None:
    images = pictures()
    protected = crafted(CraftConfig(method=method, steps=3, eps_levels=2), images)
    assert protected.sizes == list(SIZES)
    for after, before in zip(protected, images, strict=True):
        assert after.dtype == torch.uint8
        assert int(linf_levels(after[None], before[None])) == 2


def test_a_picture_depends_on_no_other_and_on_no_micro_batch() -> None:
    images, config = pictures(), CraftConfig(method="sep-fa", steps=3)
    whole = crafted(config, images, size=5)
    for size, only in ((1, slice(None)), (2, slice(1, 4)), (3, slice(2, 5))):
        for one, other in zip(crafted(config, images, only, size), whole[only], strict=True):
            assert torch.equal(one, other)


def test_steps_are_those_of_a_plain_loop_of_torchs_own_resize() -> None:
    """Every gradient through `interpolate`, at the size and place that are drawn, one picture at a time."""
    images, config = pictures(), CraftConfig(method="sep", steps=2, momentum=0.5, normalised=True)
    members = ensemble(config, images, torch.arange(5) % K)
    found = crafted(config, images)
    for number, picture in enumerate(images):
        height, width = picture.shape[1:]
        clean = picture[None].float()
        x, velocity, target = clean, torch.zeros_like(clean), torch.tensor([(number + 1) % K])
        for step in range(config.steps):
            total = torch.zeros_like(clean)
            for k, member in enumerate(members):
                coin, scale, top, left = own_size._draws(f"{100 + number} {step} {k}", 0)
                factor = SIDE / min(height, width) * (1 + 0.75 * scale if coin >= 0.5 else 1)
                levels = x.clone().requires_grad_()
                large = interpolate(levels, (round(height * factor), round(width * factor)), mode="bilinear", antialias=True)
                free = large.shape[2] - SIDE, large.shape[3] - SIDE
                y, z = (round(top * free[0]), round(left * free[1])) if coin >= 0.5 else (free[0] // 2, free[1] // 2)
                seen = large[..., y : y + SIDE, z : z + SIDE]
                seen = seen + (seen.round() - seen).detach()
                loss = torch.nn.functional.cross_entropy(member.network(seen)[1], target)
                (grad,) = torch.autograd.grad(loss, levels)
                total += grad / grad.abs().mean()
            velocity = 0.5 * velocity + total / total.abs().mean()
            x = torch.minimum(torch.maximum(x - velocity.sign(), clean - 8), clean + 8).clamp(0, 255)
        assert (x[0] != found.each[number]).float().mean() < 0.06  # a level seen that is rounded otherwise changes signs of next to nothing


def test_half_of_the_looks_are_those_of_a_test_and_no_two_the_same() -> None:
    images = pictures(((24, 24),) * 400)
    levels = flat(images)[0].float()
    look = Look(own_size=OwnSize(images.sizes, SIDE, [str(number) for number in range(400)]))
    seen = view("none").on_levels(levels, look)
    fixed = view("none").on_levels(levels, replace(look, own_size=OwnSize(images.sizes, SIDE)))
    same = (seen == fixed).flatten(1).all(1)
    assert 160 < int(same.sum()) < 240
    again = view("none").on_levels(levels, replace(look, seed=1))
    assert not torch.equal(seen, again)


@pytest.mark.parametrize("side", [9, 16, 40])
def test_networks_see_the_same_in_crafting_and_in_tests(side: int) -> None:
    images = pictures()
    levels = flat(images)[0].float()
    seen = view("none").on_levels(levels, Look(own_size=OwnSize(images.sizes, side)))
    stored = fixed_view(images, side)
    assert seen.shape == stored.shape == (len(images), 3, side, side)
    assert (seen - stored.float()).abs().max() <= 1
    assert (seen != stored).float().mean() < 0.2  # an image of bytes is rounded after each side


def test_a_window_is_that_of_torchs_antialiased_resize() -> None:
    levels = pictures(((37, 50),)).each[0][None].float()
    for size in ((11, 15), (37, 50), (60, 81)):
        whole = interpolate(levels, size, mode="bilinear", antialias=True)
        found = cut(levels, [Window(size, (3, 4)), Window(size, (0, 1))], (6, 7))
        assert (found[0] - whole[..., 3:9, 4:11]).abs().max() <= 0.5 + 1e-3
        assert (found[1] - whole[..., :6, 1:8]).abs().max() <= 0.5 + 1e-3


def test_training_sees_random_windows_and_none_without_augmentation() -> None:
    images = pictures()
    assert torch.equal(training_view(images, SIDE, "none", torch.Generator()), fixed_view(images, SIDE))
    one, same, other = (
        training_view(images, SIDE, "resized-crop-flip", torch.Generator().manual_seed(seed), threads)
        for seed, threads in ((0, 1), (0, 3), (1, 1))
    )
    assert torch.equal(fixed_view(images, SIDE, threads=3), fixed_view(images, SIDE))
    assert one.shape == (len(images), 3, SIDE, SIDE)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    ramp = Pictures([torch.arange(200).to(torch.uint8).expand(3, 200, 200)] * 200)
    spans = {name: _spans(training_view(ramp, SIDE, name, torch.Generator().manual_seed(2))) for name in ("crop", "resized-crop-flip")}
    assert spans["crop"].min() > 200 * math.sqrt(0.64 * 3 / 4) - 5
    assert spans["resized-crop-flip"].min() < 80
    assert (spans["crop"] > 0).all()
    mirrored = training_view(ramp, SIDE, "crop-flip", torch.Generator().manual_seed(2)).float()
    assert 60 < int((mirrored[:, 0, 0, 0] > mirrored[:, 0, 0, -1]).sum()) < 140


def _spans(seen: Tensor) -> Tensor:
    """The levels between the left and the right edge."""
    return (seen[:, 0, 0, -1].float() - seen[:, 0, 0, 0].float()) * SIDE / (SIDE - 1)


def test_a_pattern_is_resized_to_the_centre_and_goes_on_mirrored() -> None:
    pattern = torch.randint(-8, 9, (1, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.int16)
    found = resized(pattern, (16, 40))
    square = interpolate(pattern.float(), (16, 16), mode="bilinear", antialias=True).round()
    assert torch.equal(found[..., 12:28], square)
    assert torch.equal(found[..., 28:40], square.flip(3)[..., :12])
    assert torch.equal(found[..., :12], square.flip(3)[..., 4:])
    assert float(found.abs().max()) <= 8


def test_class_patterns_are_added_to_pictures_of_any_size() -> None:
    images, noise = pictures(), torch.full((K, 1, SIDE, SIDE), 5, dtype=torch.int16)
    noise[1] = -3
    protected = crafted_with(noise, images)
    for number, (after, before) in enumerate(zip(protected, images, strict=True)):
        assert torch.equal(after.int(), (before.int() + (5, -3, 5)[number % K]).clamp(0, 255))


def crafted_with(noise: Tensor, images: Pictures) -> Pictures:
    config = CraftConfig(method="error-min-class")
    protected = protect(replace(request(CraftConfig(method="noise"), images), config=config, prepared=noise))
    assert isinstance(protected, Pictures)
    return protected


def test_pictures_are_handled_as_images_of_one_size_are() -> None:
    images = pictures()
    levels, place = flat(images)
    assert torch.equal(levels[place(slice(1, 3))], torch.cat([picture.flatten() for picture in images.each[1:3]]))
    assert all(torch.equal(one, other) for one, other in zip(unflat(levels, images), images, strict=True))
    assert [tuple(part.shape) for part in apart(levels, images.sizes)] == [(1, 3, *size) for size in SIZES]
    assert len(joined([images[:2], images[torch.tensor([4, 0])]])) == 4
    assert all(torch.equal(one, 255 - other) for one, other in zip(mapped(lambda x: 255 - x, images), images, strict=True))
    gradient = levels.float() - 100
    found = normalise(gradient, Look(own_size=OwnSize(images.sizes, SIDE)))
    for one, picture in zip(apart(found, images.sizes), apart(gradient, images.sizes), strict=True):
        assert torch.allclose(one, picture / picture.abs().mean())


def test_similarity_of_a_large_picture_is_measured_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    before = pictures(((50, 31),)).each[0][None]
    after = (before.int() + torch.randint(-8, 9, before.shape)).clamp(0, 255).to(torch.uint8)
    whole = ssim(after, before)
    monkeypatch.setattr("sep.quality.STRIP_PIXELS", 200)
    assert torch.allclose(ssim(after, before), whole, rtol=1e-12)


def test_a_micro_batch_has_no_more_pixels_than_one_large_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sep.execution.STORED_PIXELS", 100)
    parts = MicroBatch(4).run(lambda part: part, 7, [10, 10, 500, 60, 50, 40, 1])
    assert list(parts) == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 7)]


MEMORY = """
import resource, torch
from tests.sep.test_own_size import *
torch.set_num_threads(1)
def peak(sizes):
    images = Pictures([torch.randint(256, (3, *size), dtype=torch.uint8) for size in sizes])
    crafted(CraftConfig(method="sep-drawn", steps=1, momentum=0.9), images, size=64)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
small = ((24, 32),) * 30
before = peak(small)
print(before, peak(small[:15] + ((4000, 6000),) + small[15:]))
"""


@pytest.mark.slow
def test_memory_is_bounded_by_the_largest_picture() -> None:
    """One picture of 24 megapixels among small ones: a few times its own levels as floats, of which there are 288 MB."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    told = subprocess.run([sys.executable, "-c", MEMORY], check=True, capture_output=True, text=True, env=environment).stdout.split()
    assert int(told[1]) - int(told[0]) < 12 * 4 * 3 * 4000 * 6000
