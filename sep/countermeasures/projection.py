"""A countermeasure that removes from every image the directions a linear model finds in the training set.

Legend: B images, C channels, H W pixels, K classes, P = C * H * W.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

EPOCHS = 20  # of the linear model's fit: seconds with images in memory
RATE, MOMENTUM = 0.01, 0.9
NEGLIGIBLE = 1e-4  # a direction smaller than the largest by this factor is a rounding error


def orthogonal_projection(epoch: Callable[[int], Iterable[tuple[Tensor, Tensor]]], num_classes: int) -> Callable[[Tensor], Tensor]:
    """Project out of images what a linear model learns (Sandoval-Segura et al. 2023, "What Can We Learn from Unlearnable Datasets?").

    By algorithm 1 of the paper: a softmax regression is fitted on the pixels, a QR decomposition makes its class weights orthonormal, and
    these directions are projected out of every image. The regression starts from zero, so that its weights are sums of training images.

    Args:
        epoch: batches of an epoch, images `(B, C, H, W)` in levels and labels `(B,)`.
        num_classes: K.

    Returns:
        A function that projects images `(B, C, H, W)` in levels. Its result is float32, not whole and partly beyond 0..255: rounding and
        clamping would restore part of what it removed.
    """
    return partial(project_out, directions=directions(fit(epoch, num_classes)))


def fit(epoch: Callable[[int], Iterable[tuple[Tensor, Tensor]]], num_classes: int) -> Tensor:
    """Return the class weights `(K, P)` of a softmax regression on the pixels."""
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
    """Return an orthonormal basis `(P, at most K)`, on the CPU, of the span of class weights `(K, P)`.

    The weights of all classes sum to zero, so that they span one direction fewer than K.
    """
    basis, triangle = torch.linalg.qr(weights.T.cpu())
    sizes = triangle.diagonal().abs()
    kept: Tensor = basis[:, sizes > NEGLIGIBLE * sizes.max()].contiguous()
    return kept


def project_out(images: Tensor, directions: Tensor) -> Tensor:
    """Return images `(B, C, H, W)` without their part along orthonormal directions `(P, any)`, float32."""
    pixels = images.flatten(1).float()
    return (pixels - (pixels @ directions) @ directions.T).view(images.shape)
