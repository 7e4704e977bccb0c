"""Views on the device: what the CPU sees, whatever the precision around them."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

from sep.execution import arithmetic
from sep.views.registry import Look, kinds

NAMES = ["none", "jpeg-10", "jpeg-50", "webp-75", "blur", "bits-2", "gray", "warp", "noise-4", "band-drop", "resize-crop"]


@pytest.mark.parametrize("name", NAMES)
def test_a_device_sees_what_the_cpu_sees_whatever_the_precision_around_it(name: str, device: torch.device) -> None:
    """But for a few values: a level or coefficient half way between two may be rounded either way."""
    coarse = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
    images, look = interpolate(coarse, (32, 32), mode="bilinear").round(), Look(seed=5)
    (view,) = kinds([name])
    wanted = view.on_levels(images, look)
    with arithmetic(device, "bf16"):
        seen = view.on_levels(images.to(device, memory_format=torch.channels_last), look)
    assert seen.dtype == torch.float32
    assert float(((seen.cpu() - wanted).abs() <= 1).double().mean()) > 0.98
