"""Protection without gradients of an ensemble: what such a method is told, and adding what was made for an image to it.

Legend: B images, C channels, H W pixels, K protected classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sep.budget import Budget


@dataclass(frozen=True)
class Request:
    """Images to protect, and all that may decide how: no other image of the release does, but through `prepared`.

    Attributes:
        images: clean ones, `(B, C, H, W)` uint8 on the CPU.
        classes: the place of each image's class among those that are protected, `(B,)` int64, 0 to K-1.
        num_classes: K.
        seeds: one for each image, its own.
        seed: one for the whole release, which what a class has in common is drawn from.
        budget: of each image.
        prepared: what was found over the whole training set before, for these images or for all classes; None where a method needs nothing.
    """

    images: Tensor
    classes: Tensor
    num_classes: int
    seeds: Sequence[int]
    seed: int
    budget: Budget
    prepared: Tensor | None = None

    def own(self, *shape: int) -> Tensor:
        """Normal draws of each image, `(B, *shape)` float64: the same ones for an image whatever images are beside it."""
        drawn = [torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in self.seeds]
        return torch.stack(drawn)

    def common(self) -> torch.Generator:
        """A fresh generator, which is the same for every image of the release."""
        return torch.Generator().manual_seed(self.seed)


def added(images: Tensor, change: Tensor) -> Tensor:
    """Images `(B, C, H, W)` uint8 with a change in whole levels, clipped to 0..255; clipping only ever makes a change smaller."""
    return (images.double() + change).clamp(0, 255).to(torch.uint8)


def own_noise(request: Request) -> Tensor:
    """Images with the noise that was made for each of them, `(B, C, H, W)` whole levels."""
    assert request.prepared is not None
    return added(request.images, request.prepared)


def class_noise(request: Request) -> Tensor:
    """Images with the noise that was made for their class, of `(K, C, H, W)` whole levels."""
    assert request.prepared is not None
    return added(request.images, request.prepared[request.classes])
