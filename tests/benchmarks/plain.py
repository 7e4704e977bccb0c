"""SEP, SEP-FA and SEP-FA-VR as written in an afternoon: the fast loop has to agree with this one, and is measured against it.

float32, contiguous, the networks as they were trained (in eval mode, weights that require gradients, batch-norm not folded), all of them on
the device, the whole forward pass with its head. Gradients of the pixels are computed in one of two ways: alone, or by `loss.backward()`,
as in tutorials, which also computes those of the weights.

Legend: B images, C channels, H W pixels, K classes, D feature width, N checkpoints, M inner steps, T outer steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from sep.models import Network

Means = Sequence[Tensor] | None  # of every checkpoint, `(K, D)`; None for SEP
Gradient = Callable[[Network, Tensor, Tensor, Tensor | None], Tensor]


def loss(network: Network, x: Tensor, targets: Tensor, means: Tensor | None) -> Tensor:
    """Return the loss of a batch of pixels `(B, C, H, W)`."""
    features, logits = network(x)
    return functional.cross_entropy(logits, targets) if means is None else functional.mse_loss(features, means[targets])


def gradient(network: Network, x: Tensor, targets: Tensor, means: Tensor | None) -> Tensor:
    """Return the gradient of the loss with respect to the pixels alone, `(B, C, H, W)`."""
    x = x.detach().requires_grad_(True)
    return torch.autograd.grad(loss(network, x, targets, means), x)[0]


def backward(network: Network, x: Tensor, targets: Tensor, means: Tensor | None) -> Tensor:
    """Return the same gradient, but compute those of the weights as well."""
    network.zero_grad()
    x = x.detach().requires_grad_(True)
    torch.autograd.backward(loss(network, x, targets, means))
    assert x.grad is not None
    return x.grad


def step(x: Tensor, direction: Tensor, clean: Tensor, eps_levels: int) -> Tensor:
    """Move one grey level down, inside the ball and inside the range."""
    x = x - direction.sign()
    x = torch.max(torch.min(x, clean + eps_levels), clean - eps_levels)
    return x.clamp(0, 255)


def all_gradients(networks: Sequence[Network], x: Tensor, targets: Tensor, means: Means, of: Gradient = gradient) -> list[Tensor]:
    """Return the gradient of every checkpoint."""
    return [of(network, x, targets, means[i] if means else None) for i, network in enumerate(networks)]


def sep(networks: Sequence[Network], clean: Tensor, targets: Tensor, means: Means, eps_levels: int, steps: int, of: Gradient) -> Tensor:
    """Craft by SEP, or by SEP-FA if class means are given."""
    x = clean.clone()
    for _ in range(steps):
        total = torch.zeros_like(x)
        for grad in all_gradients(networks, x, targets, means, of):
            total += grad
        x = step(x, total, clean, eps_levels)
    return x


def sep_variance_reduced(
    networks: Sequence[Network],
    clean: Tensor,
    targets: Tensor,
    means: Means,
    eps_levels: int,
    draws: Sequence[Sequence[int]],
    of: Gradient,
) -> Tensor:
    """Craft by SEP-FA-VR; `draws` names the checkpoints of the inner steps, `(T, M)`."""
    x = clean.clone()
    for drawn in draws:
        each = all_gradients(networks, x, targets, means, of)
        mean = torch.stack(each).mean(0)
        inner, total = x.clone(), torch.zeros_like(x)
        for k in drawn:
            total = total + of(networks[k], inner, targets, means[k] if means else None) - (each[k] - mean)
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
    of: Gradient = gradient,
) -> Tensor:
    """Return protected images, from clean ones `(B, C, H, W)` uint8 on the CPU; with variance reduction if draws are given."""
    device = next(networks[0].parameters()).device
    done = []
    for batch, wanted in zip(torch.split(images, batch_size), torch.split(targets, batch_size), strict=True):
        clean, wanted = batch.float().to(device), wanted.to(device)
        if draws is None:
            x = sep(networks, clean, wanted, means, eps_levels, steps, of)
        else:
            x = sep_variance_reduced(networks, clean, wanted, means, eps_levels, draws, of)
        done.append(x.to(torch.uint8).cpu())
    return torch.cat(done)
