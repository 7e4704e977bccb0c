"""A linear head on the features of a frozen network, which are computed once.

Legend: B images, C channels, H W pixels, K classes, D feature width, N all images.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sep.choices import Precision
from sep.execution import arithmetic, moved
from sep.models import Network

LEAST = 1e-3  # of a deviation, below which a feature says nothing


@torch.no_grad()
def features_of(network: Network, batches: Iterable[tuple[Tensor, Tensor]], precision: Precision = "auto") -> tuple[Tensor, Tensor]:
    """Return features as images of one pixel and D channels, `(N, D, 1, 1)` float32 on the device, and labels `(N,)`.

    As such images they go through the one training loop, and through the network of `linear_probe`.

    Args:
        network: in eval mode afterwards.
        batches: images `(B, C, H, W)` in levels, and labels `(B,)`.
        precision: of products and convolutions.
    """
    network.eval()
    device = network.mean.device
    features, labels = [], []
    with arithmetic(device, precision):
        for images, own in batches:
            levels = moved(images, device).to(torch.float32, memory_format=torch.channels_last)
            features.append(network.features(levels).float())
            labels.append(moved(own, device))
    return torch.cat(features)[:, :, None, None], torch.cat(labels)


def linear_probe(features: Tensor, num_classes: int) -> Network:
    """Return a fresh linear head for features `(N, D, 1, 1)`, which it standardises: `(B, D, 1, 1) -> (B, K)`, on their device."""
    deviations, means = torch.std_mean(features.flatten(1), 0, correction=0)
    probe = Network(nn.Flatten(), features.shape[1], num_classes, means.tolist(), deviations.clamp_min(LEAST).tolist())
    nn.init.zeros_(probe.head.weight)
    nn.init.zeros_(probe.head.bias)
    return probe.to(features.device)
