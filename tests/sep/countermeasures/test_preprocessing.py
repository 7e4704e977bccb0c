"""Countermeasures on stored images at the edges: the smallest pictures, and those that a codec does not take."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn.functional import interpolate

from sep.countermeasures.preprocessing import LONGEST_WEBP, resize, screenshot, webp


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 2), (3, 2)])
def test_the_smallest_pictures_are_resized_too(size: tuple[int, int]) -> None:
    images = torch.randint(256, (2, 3, *size), dtype=torch.uint8)
    for change in (partial(resize, percent=50), partial(resize, percent=1), screenshot):
        after = change(images)
        assert (after.shape, after.dtype) == (images.shape, torch.uint8)
    one = resize(images, 1)
    assert torch.equal(one, one[..., :1, :1].expand_as(one))  # of a single pixel
    assert torch.equal(one[..., :1, :1].float(), interpolate(images.float(), (1, 1), mode="bilinear", antialias=True).round())


def test_a_picture_too_large_for_webp_stays_as_it_is() -> None:
    wide = torch.arange(LONGEST_WEBP + 1).remainder(256).to(torch.uint8).expand(1, 3, 1, -1)
    assert torch.equal(webp(wide, 10), wide)
    assert not torch.equal(webp(wide[..., :-1], 10), wide[..., :-1])
