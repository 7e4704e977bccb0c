"""Undoing a protection that was learned from pairs: images that an adversary has as they were, and as they were released.

After Wang et al. 2025, "BridgePure: Limited Protection Leakage Can Break Black-Box Data Protection".

Legend: B images, C channels, H W pixels.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from sep.countermeasures.countermeasure import Epoch, OfClass
from sep.countermeasures.restoration import UNet, restored, scaled, trained

STEPS = 1500  # of training
NOISE = 0.1  # of the bridge, in numbers from -1 to 1; half-way it has a standard deviation of half of that, 6 levels
STOPS = 4  # between the released image and the clean one


def bridge(epoch: Epoch, num_classes: int, *, steps: int = STEPS) -> OfClass:
    """Lead images back over a bridge from protected to clean ones, which is learned from pairs.

    The paper takes a diffusion bridge (Zhou et al. 2024, "Denoising Diffusion Bridge Models") with a network for diffusion at full size.
    Here it is a Brownian bridge, whose network sees the released image beside the one on the way, and predicts the clean one. Images
    cross it without further noise, so that purified ones are the same whenever they are made.

    Args:
        epoch: batches of an epoch, protected images and their clean form, `(B, C, H, W)` in levels each.
        num_classes: not used; the network does not see the class.
        steps: of training.

    Returns:
        A function of images `(B, C, H, W)` in levels, whatever their labels. Its result is float32, not whole.
    """
    with torch.random.fork_rng(devices=[]):
        network = UNet(6)
        trained(network, partial(_loss, network), epoch, steps)
    device = next(network.parameters()).device
    return lambda images, _: restored(partial(_crossed, network), images, device)


def on_the_bridge(clean: Tensor, protected: Tensor, share: Tensor, noise: Tensor) -> Tensor:
    """Return images on the way: normal, between the two at a share from 0 (clean) to 1, with a variance of NOISE² share (1 - share).

    Args:
        clean: `(B, C, H, W)`.
        protected: the same images, `(B, C, H, W)`.
        share: `(B,)`.
        noise: standard normal, `(B, C, H, W)`.
    """
    share = share[:, None, None, None]
    return torch.lerp(clean, protected, share) + NOISE * (share * (1 - share)).sqrt() * noise


def _loss(network: nn.Module, protected: Tensor, clean: Tensor) -> Tensor:
    end, start = scaled(clean), scaled(protected)
    share, noise = (draw.to(end.device) for draw in (torch.rand(len(end)), torch.randn(end.shape)))
    return functional.mse_loss(_predicted(network, on_the_bridge(end, start, share, noise), start, share), end)


def _predicted(network: nn.Module, now: Tensor, protected: Tensor, share: Tensor) -> Tensor:
    """Return the predicted clean images, `(B, 3, H, W)`; the network gives their difference from the protected ones."""
    clean: Tensor = protected + network(torch.cat([now, protected], 1), share)
    return clean


def _crossed(network: nn.Module, protected: Tensor) -> Tensor:
    now = protected
    for stop in range(STOPS, 0, -1):
        clean = _predicted(network, now, protected, protected.new_full((len(protected),), stop / STOPS))
        now = torch.lerp(clean, now, (stop - 1) / stop)
    return now
