"""Countermeasures that remove from every image what the training set shows of a pattern: of all classes, or of its own.

Legend: B images, C channels, H W pixels, K classes, P = C * H * W.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

EPOCHS = 20  # of the linear model's fit: seconds with images in memory
RATE, MOMENTUM = 0.01, 0.9
KERNEL, DEVIATION = 9, 2.0  # pixels, of the blur whose remainder is a pattern: what is finer than about 8 pixels
NEGLIGIBLE = 1e-4  # a direction smaller than the largest by this factor is a rounding error


Epoch = Callable[[int], Iterable[tuple[Tensor, Tensor]]]
OfClass = Callable[[Tensor, Tensor], Tensor]


def orthogonal_projection(epoch: Epoch, num_classes: int) -> OfClass:
    """Project out of images what a linear model learns (Sandoval-Segura et al. 2023, "What Can We Learn from Unlearnable Datasets?").

    By algorithm 1 of the paper: a softmax regression is fitted on the pixels, a QR decomposition makes its class weights orthonormal, and
    these directions are projected out of every image. The regression starts from zero, so that its weights are sums of training images.

    Args:
        epoch: batches of an epoch, images `(B, C, H, W)` in levels and labels `(B,)`.
        num_classes: K.

    Returns:
        A function that projects images `(B, C, H, W)` in levels, whatever their labels. Its result is float32, not whole and partly beyond
        0..255: rounding and clamping would restore part of what it removed.
    """
    basis = directions(fit(epoch, num_classes))
    return lambda images, _: project_out(images, basis)


def class_residual(epoch: Epoch, num_classes: int) -> OfClass:
    """Subtract from every image what the images of its class have in common beyond a blur.

    Averaging a class leaves little but a pattern that all of its images have: clean images share no fine detail at the same place.

    Args:
        epoch: batches of an epoch, images `(B, C, H, W)` in levels and labels `(B,)`.
        num_classes: K.

    Returns:
        A function of images `(B, C, H, W)` in levels and labels `(B,)`. Its result is float32, not whole and partly beyond 0..255.
    """
    sums: Tensor | None = None
    counts = torch.zeros(num_classes, 1)
    for images, labels in epoch(0):
        members = functional.one_hot(labels, num_classes).T.float().cpu()
        part = members @ images.flatten(1).float().cpu()
        sums = part if sums is None else sums + part
        counts += members.sum(1, keepdim=True)
    assert sums is not None
    means = (sums / counts.clamp_min(1)).view(-1, *images.shape[1:])
    return partial(_without_own, patterns=means - v2.functional.gaussian_blur(means, kernel_size=[KERNEL] * 2, sigma=[DEVIATION] * 2))


def _without_own(images: Tensor, labels: Tensor, patterns: Tensor) -> Tensor:
    return images.float() - patterns.to(images.device)[labels]


def fit(epoch: Epoch, num_classes: int) -> Tensor:
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
