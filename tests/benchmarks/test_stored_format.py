"""The benchmark of stored formats reads back what it wrote."""

from __future__ import annotations

import numpy as np

from tests.benchmarks.stored_format import ENCODERS, measure


def test_every_encoder_is_measured_on_the_same_pictures() -> None:
    """`measure` itself checks that every file gives its picture back."""
    flat, noisy = np.full((16, 24, 3), 7, np.uint8), np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    one, other = measure([flat]), measure([noisy])
    assert (one["pictures"], one["size"]) == (1, [16, 24])
    for name in ENCODERS:
        assert one[name]["kilobytes"] < other[name]["kilobytes"]
