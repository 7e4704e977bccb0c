from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sep.augment import augment, crop, flip, resized_crop
from sep.train_config import Augmentation


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> Tensor:
    """Images whose pixels are all different, and never 0."""
    return (1 + torch.arange(16 * 12 * 3).view(1, 3, 16, 12) + torch.arange(200).view(-1, 1, 1, 1)).float()


def test_crops_are_shifted_windows_of_the_padded_image(images: Tensor) -> None:
    """Shifts are at most an eighth of the height either way, equally frequent, and fill in zeros."""
    shifted = crop(images, draw())
    assert shifted.shape == images.shape
    pad = 16 // 8
    padded = functional.pad(images, (pad, pad, pad, pad))
    found = []
    for before, after in zip(padded, shifted, strict=True):
        windows = [(i, j) for i in range(2 * pad + 1) for j in range(2 * pad + 1) if torch.equal(before[:, i : i + 16, j : j + 12], after)]
        assert len(windows) == 1
        found += windows
    assert set(found) == {(i, j) for i in range(5) for j in range(5)}


def test_crop_of_the_paper_is_four_pixels_of_thirty_two() -> None:
    images = torch.ones(400, 1, 32, 32)
    kept = crop(images, draw())
    lost_rows = 32 - kept.amax(3).sum(2).flatten()
    assert int(lost_rows.max()) == 4


def test_flips_are_exact_mirrors_of_about_half(images: Tensor) -> None:
    after = flip(images, draw())
    mirrored = [torch.equal(b, a.flip(2)) for a, b in zip(images, after, strict=True)]
    same = [torch.equal(b, a) for a, b in zip(images, after, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 70 < sum(mirrored) < 130


def test_resized_crop_stays_in_range_and_cuts_what_it_says() -> None:
    """On a ramp, the middle and the slope of the result reveal the window."""
    ramp = torch.linspace(10, 250, 32).view(1, 1, 1, 32).expand(300, 3, 32, 32)
    after = resized_crop(ramp, draw())
    assert after.shape == ramp.shape
    assert 10 <= float(after.min()) <= float(after.max()) <= 250.001
    share = (after[:, 0, 0, 20] - after[:, 0, 0, 11]) / (ramp[0, 0, 0, 20] - ramp[0, 0, 0, 11])
    assert 0.24 < float(share.min()) < 0.4  # sqrt(0.08 * 3/4) is 0.245
    assert 0.95 < float(share.max()) < 1.001
    middle = after[:, 0, 0, 15:17].mean(1)
    assert float(middle.std()) > 10  # not always the centre


def test_a_whole_window_is_the_image(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.tensor([1.0, 0.5, 0.3, 0.7]).view(4, 1).expand(4, len(images))  # area 100 %, aspect 1
    monkeypatch.setattr(torch, "rand", lambda *sizes, generator: whole)
    square = images[..., : min(images.shape[2:]), : min(images.shape[2:])]
    assert torch.allclose(resized_crop(square, draw()), square, atol=1e-2)


@pytest.mark.parametrize("name", get_args(Augmentation))
def test_every_augmentation_is_seeded_and_keeps_shape(images: Tensor, name: Augmentation) -> None:
    levels = images.clamp(max=255).to(torch.uint8)
    kept = levels.clone()
    once = augment(levels, name, draw(1))
    assert once.shape == levels.shape
    assert torch.equal(once, augment(levels, name, draw(1)))
    assert torch.equal(levels, kept)
    assert torch.equal(once, augment(levels, name, draw(2))) is (name == "none")


def test_crops_come_channels_last(images: Tensor) -> None:
    assert crop(images, draw()).is_contiguous(memory_format=torch.channels_last)
    assert augment(images, "crop-flip", draw()).is_contiguous(memory_format=torch.channels_last)
