"""The L-infinity ball in grey levels: staying inside it, and proving it in integers on what is released.

Legend: B images, C channels, H W pixels; images are grey levels 0..255.
"""

from __future__ import annotations

import torch
from torch import Tensor


def project(x: Tensor, clean: Tensor, eps_levels: int) -> Tensor:
    """`P(x) = clamp(clamp(x, x0 - eps, x0 + eps), 0, 255)` (method, section 4).

    Args:
        x: whole levels as floats, `(B, C, H, W)`.
        clean: the images `x0` the ball is around, same shape.
        eps_levels: radius of the ball, in levels.
    """
    return torch.clamp(x, clean - eps_levels, clean + eps_levels).clamp_(0, 255)


def linf_levels(protected: Tensor, clean: Tensor) -> Tensor:
    """Largest change of each image in whole levels, `(B,)` int, of uint8 images of equal shape `(B, ...)`."""
    assert protected.dtype == clean.dtype == torch.uint8
    return (protected.int() - clean.int()).abs().flatten(1).amax(1)


def psnr_db(protected: Tensor, clean: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, `(B,)`, of uint8 images; infinite where nothing changed."""
    error = (protected.double() - clean.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(255.0**2 / error)


def check(protected: Tensor, clean: Tensor, eps_levels: int) -> None:
    """Hold uint8 images `(B, ...)` to the budget.

    Raises:
        ValueError: an image leaves the ball, or the shapes differ.
    """
    if protected.shape != clean.shape:
        raise ValueError(f"protected images have shape {tuple(protected.shape)}, clean ones {tuple(clean.shape)}")
    largest = linf_levels(protected, clean)
    if (largest > eps_levels).any():
        worst = int(largest.argmax())
        raise ValueError(f"image {worst} of {len(largest)} changes by {int(largest[worst])} levels; the budget is {eps_levels}")
