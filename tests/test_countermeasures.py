from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sep.countermeasures import COUNTERMEASURES, apply


@pytest.fixture
def images() -> Tensor:
    """A smooth colour ramp under fine noise."""
    ramp = torch.linspace(40, 200, 32)
    smooth = torch.stack([ramp.view(1, -1).expand(32, 32), ramp.view(-1, 1).expand(32, 32), ramp.flip(0).view(1, -1).expand(32, 32)])
    noise = torch.randint(-30, 31, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    return (smooth + noise).round().to(torch.uint8)


def luma(images: Tensor) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    return (images.double() * weights.view(1, 3, 1, 1)).sum(1)


def high_frequencies(images: Tensor) -> float:
    """Energy of the luma's spectrum in its outer half."""
    spectrum = torch.fft.fft2(luma(images)).abs().square()
    return float(spectrum[:, 8:25, 8:25].sum())


def test_none_changes_nothing(images: Tensor) -> None:
    assert torch.equal(apply("none", images), images)


def test_grayscale_is_luma_in_all_channels(images: Tensor) -> None:
    gray = apply("grayscale", images)
    assert torch.equal(gray[:, 0], gray[:, 1])
    assert torch.equal(gray[:, 0], gray[:, 2])
    assert float((gray[:, 0] - luma(images)).abs().max()) < 1.1  # torchvision cuts off the fraction


@pytest.mark.parametrize("quality", [10, 50, 90])
def test_jpeg_is_a_real_codec_at_the_quality_named(images: Tensor, quality: int) -> None:
    """Two codecs of the same standard may differ by rounding, and by no more than that."""
    ours = apply(f"jpeg-{quality}", images)
    for image, after in zip(images, ours, strict=True):
        stream = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(stream, "jpeg", quality=quality)
        theirs = np.asarray(Image.open(stream)).astype(int)
        assert np.abs(after.permute(1, 2, 0).numpy().astype(int) - theirs).mean() < 1


def test_jpeg_takes_more_fine_detail_the_lower_its_quality(images: Tensor) -> None:
    left = [high_frequencies(apply(f"jpeg-{quality}", images)) / high_frequencies(images) for quality in (10, 50, 90)]
    assert left[0] < 0.1
    assert left[0] < left[1] < left[2]


@pytest.mark.parametrize("name", list(COUNTERMEASURES))
def test_every_countermeasure_gives_stored_levels_and_leaves_its_input(images: Tensor, name: str) -> None:
    before = images.clone()
    after = apply(name, images)
    assert after.dtype == torch.uint8
    assert after.shape == images.shape
    assert torch.equal(images, before)
    assert torch.equal(after, apply(name, images))


def test_an_unknown_countermeasure_lists_the_known_ones(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"'jpeg'.*none, grayscale, jpeg-10"):
        apply("jpeg", images)
