"""SEP, SEP-FA and SEP-FA-VR as people write them in an afternoon: what the fast loop is measured against, and has to agree with.

float32, contiguous, the networks as they were trained (in eval mode, weights that require gradients, batch-norm of its own), all of them on
the device, the whole forward pass with its head. Only gradients of the pixels are asked for: `loss.backward()`, which many write, would
make it slower still.

Legend: B images, C channels, H W pixels, K classes, D feature width, N checkpoints, M inner steps, T outer steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from sep.models import Network

Means = Sequence[Tensor] | None  # of every checkpoint, `(K, D)`; None for SEP


def gradient(network: Network, x: Tensor, targets: Tensor, means: Tensor | None) -> Tensor:
    """Of the loss with respect to the pixels, `(B, C, H, W)`."""
    x = x.detach().requires_grad_(True)
    features, logits = network(x)
    loss = functional.cross_entropy(logits, targets) if means is None else functional.mse_loss(features, means[targets])
    return torch.autograd.grad(loss, x)[0]


def step(x: Tensor, direction: Tensor, clean: Tensor, eps_levels: int) -> Tensor:
    """One grey level down, inside the ball and inside the range."""
    x = x - direction.sign()
    x = torch.max(torch.min(x, clean + eps_levels), clean - eps_levels)
    return x.clamp(0, 255)


def all_gradients(networks: Sequence[Network], x: Tensor, targets: Tensor, means: Means) -> list[Tensor]:
    """Of every checkpoint."""
    return [gradient(network, x, targets, means[i] if means else None) for i, network in enumerate(networks)]


def sep(networks: Sequence[Network], clean: Tensor, targets: Tensor, means: Means, eps_levels: int, steps: int) -> Tensor:
    """SEP; SEP-FA where means are given."""
    x = clean.clone()
    for _ in range(steps):
        total = torch.zeros_like(x)
        for grad in all_gradients(networks, x, targets, means):
            total += grad
        x = step(x, total, clean, eps_levels)
    return x


def sep_variance_reduced(
    networks: Sequence[Network], clean: Tensor, targets: Tensor, means: Means, eps_levels: int, draws: Sequence[Sequence[int]]
) -> Tensor:
    """SEP-FA-VR; `draws` names the checkpoints of the inner steps, `(T, M)`."""
    x = clean.clone()
    for drawn in draws:
        each = all_gradients(networks, x, targets, means)
        mean = torch.stack(each).mean(0)
        inner, total = x.clone(), torch.zeros_like(x)
        for k in drawn:
            total = total + gradient(networks[k], inner, targets, means[k] if means else None) - (each[k] - mean)
            inner = step(inner, total, clean, eps_levels)
        x = step(x, total, clean, eps_levels)
    return x


def craft(
    networks: Sequence[Network],
    images: Tensor,
    targets: Tensor,
    means: Means,
    eps_levels: int,
    steps: int,
    batch_size: int,
    draws: Sequence[Sequence[int]] | None = None,
) -> Tensor:
    """Protected images of clean ones, both `(B, C, H, W)` uint8 on the CPU; with variance reduction where draws are given."""
    device = next(networks[0].parameters()).device
    done = []
    for batch, wanted in zip(torch.split(images, batch_size), torch.split(targets, batch_size), strict=True):
        clean, wanted = batch.float().to(device), wanted.to(device)
        if draws is None:
            x = sep(networks, clean, wanted, means, eps_levels, steps)
        else:
            x = sep_variance_reduced(networks, clean, wanted, means, eps_levels, draws)
        done.append(x.to(torch.uint8).cpu())
    return torch.cat(done)
