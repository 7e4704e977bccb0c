"""Networks by name, for images given as grey levels 0..255.

Legend: B images, C channels, H W pixels, K classes, D feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import get_args

import torch
from torch import Tensor, nn

from sep.choices import NetworkName
from sep.trunks import TRUNKS

assert tuple(TRUNKS) == get_args(NetworkName)


class Network(nn.Module):
    """A trunk that computes penultimate features, and a linear head on them. The network normalises its input itself."""

    mean: Tensor
    std: Tensor

    def __init__(self, trunk: nn.Module, width: int, num_classes: int, mean: Sequence[float], std: Sequence[float]) -> None:
        """Wrap a trunk `(B, C, H, W) -> (B, D)`; `mean` and `std` per channel in grey levels."""
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(width, num_classes)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def features(self, levels: Tensor) -> Tensor:
        """Return penultimate features `(B, D)` of images `(B, C, H, W)` in levels 0..255."""
        features: Tensor = self.trunk((levels - self.mean) / self.std)
        return features

    def forward(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Return features `(B, D)` and logits `(B, K)` of images `(B, C, H, W)` in levels 0..255."""
        features = self.features(levels)
        return features, self.head(features)


def build(name: str, num_classes: int, image_size: int, mean: Sequence[float], std: Sequence[float]) -> Network:
    """Return a freshly initialised network (from torch's global random state).

    Args:
        name: one of `NetworkName`.
        num_classes: K.
        image_size: side of the images in pixels, on which the stem and the patches of a transformer depend.
        mean: per channel, in grey levels.
        std: per channel, in grey levels.

    Raises:
        ValueError: the name is unknown, or the network cannot take images of this size.
    """
    if name not in TRUNKS:
        raise ValueError(f"unknown network {name!r}; known are {', '.join(TRUNKS)}")
    trunk, width = TRUNKS[name](image_size)
    return Network(trunk, width, num_classes, mean, std)


@cache  # an audit asks again for each adversary
def check_input_size(name: str, num_classes: int, height: int, width: int) -> None:
    """Check, without memory or arithmetic, that a network can be built for images of this size and can compute on them.

    Raises:
        ValueError: the name is unknown, or the network cannot take such images.
    """
    with torch.device("meta"):
        try:
            build(name, num_classes, min(height, width), (0.0,) * 3, (1.0,) * 3)(torch.empty(2, 3, height, width))
        except (RuntimeError, AssertionError) as error:  # what torch and torchvision raise if a shape does not fit
            raise ValueError(f"{name} cannot take images of {height} x {width} pixels: {error}") from error
