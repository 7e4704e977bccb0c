"""What a linear model sees in a training set, taken out of every image of it.

Legend: B images, C channels, H W pixels, K classes, P = C * H * W.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

EPOCHS = 20  # of fitting the linear model, a pass over the images each: seconds where they are in memory
RATE, MOMENTUM = 0.01, 0.9
NEGLIGIBLE = 1e-4  # a direction this much smaller than the largest is rounding


def orthogonal_projection(epoch: Callable[[int], Iterable[tuple[Tensor, Tensor]]], num_classes: int) -> Callable[[Tensor], Tensor]:
    """Orthogonal projection (Sandoval-Segura et al. 2023, "What Can We Learn from Unlearnable Datasets?", algorithm 1).

    A softmax regression is fitted on the pixels, its class weights are made orthonormal by a QR decomposition, and these directions are
    projected out of every image. The regression starts from zero, so that its weights are sums of training images and nothing else.

    Args:
        epoch: batches of an epoch, images `(B, C, H, W)` in levels and labels `(B,)`.
        num_classes: K.

    Returns:
        What does that to images `(B, C, H, W)` in levels; it gives float32, no longer whole and some beyond 0..255: rounding and clamping
        would bring back part of what was taken out.
    """
    return partial(project_out, directions=directions(fit(epoch, num_classes)))


def fit(epoch: Callable[[int], Iterable[tuple[Tensor, Tensor]]], num_classes: int) -> Tensor:
    """Class weights `(K, P)` of a softmax regression on the pixels."""
    model: nn.Linear | None = None
    for number in range(EPOCHS):
        for images, labels in epoch(number):
            pixels = images.flatten(1).float() / 255 - 0.5
            if model is None:
                model = nn.Linear(pixels.shape[1], num_classes, device=pixels.device)
                nn.init.zeros_(model.weight)
                nn.init.zeros_(model.bias)
                sgd = torch.optim.SGD(model.parameters(), RATE, MOMENTUM)
            sgd.zero_grad(set_to_none=True)
            torch.autograd.backward(functional.cross_entropy(model(pixels), labels))
            sgd.step()
    assert model is not None
    return model.weight.detach()


def directions(weights: Tensor) -> Tensor:
    """An orthonormal basis `(P, at most K)`, on the CPU, of what class weights `(K, P)` span.

    The weights of all classes sum to zero, so that there is one direction fewer than classes.
    """
    basis, triangle = torch.linalg.qr(weights.T.cpu())
    sizes = triangle.diagonal().abs()
    kept: Tensor = basis[:, sizes > NEGLIGIBLE * sizes.max()].contiguous()
    return kept


def project_out(images: Tensor, directions: Tensor) -> Tensor:
    """Images `(B, C, H, W)` without their part along orthonormal directions `(P, any)`, float32."""
    pixels = images.flatten(1).float()
    return (pixels - (pixels @ directions) @ directions.T).view(images.shape)
