"""A brute-force reference of the method: float64, one image at a time, networks as trained (batch-norm not folded away).

Shares no code with `sep.craft`, `sep.ensemble`, `sep.objective` and `sep.budget`; loops and formulas are written out.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sep.models import Network


@dataclass(frozen=True)
class Checkpoint:
    """A float64 network in eval mode and its mean features per class, `means[class]` of shape `(D,)`."""

    network: Network
    means: tuple[Tensor, ...]


def features_of(network: Network, image: Tensor) -> Tensor:
    """Penultimate features `(D,)` of one image `(C, H, W)` in levels."""
    features: Tensor = network.trunk(((image - network.mean[0]) / network.std[0]).unsqueeze(0))
    return features[0]


def checkpoint(network: Network, images: Tensor, labels: Sequence[int], num_classes: int) -> Checkpoint:
    """Plain averages of the features over the training images of each class."""
    network = copy.deepcopy(network).double().eval()
    with torch.no_grad():
        features = [features_of(network, image.double()) for image in images]
    means = []
    for c in range(num_classes):
        own = [f for f, label in zip(features, labels, strict=True) if label == c]
        total = torch.zeros_like(own[0])
        for f in own:
            total = total + f
        means.append(total / len(own))
    return Checkpoint(network, tuple(means))


def loss_of(point: Checkpoint, image: Tensor, target: int, aligns_features: bool) -> Tensor:
    """`L_i(x)` of one image: negative log-softmax at the target, or mean squared distance to the target's class mean."""
    features = features_of(point.network, image)
    if aligns_features:
        return ((features - point.means[target]) ** 2).sum() / len(features)
    logits = point.network.head.weight @ features + point.network.head.bias
    return torch.log(torch.exp(logits).sum()) - logits[target]


def gradient_of(point: Checkpoint, image: Tensor, target: int, aligns_features: bool) -> Tensor:
    """`grad L_i(x)` with respect to the pixels of one image, `(C, H, W)`."""
    image = image.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss_of(point, image, target, aligns_features), image)
    return grad


def step_into_ball(image: Tensor, direction: Tensor, clean: Tensor, eps_levels: int) -> Tensor:
    """`P(x - sign(direction))`, the three bounds one after the other."""
    image = image - torch.sign(direction)
    image = torch.minimum(torch.maximum(image, clean - eps_levels), clean + eps_levels)
    return torch.minimum(torch.maximum(image, torch.zeros_like(image)), torch.full_like(image, 255))


def protect_image(
    method: str, points: Sequence[Checkpoint], image: Tensor, label: int, num_classes: int, eps_levels: int, draws: Sequence[Sequence[int]]
) -> Tensor:
    """One image `(C, H, W)` uint8 after one outer step per entry of `draws`, which holds the inner steps' checkpoints.

    The methods without inner steps take only the number of outer steps from `draws`; tap is sep given one checkpoint.
    """
    clean = image.double()
    target = (label + num_classes // 2) % num_classes
    fa = method in ("sep-fa", "sep-fa-vr")
    x = clean
    for drawn in draws:
        gradients = [gradient_of(point, x, target, fa) for point in points]
        mean = torch.zeros_like(x)
        for g in gradients:
            mean = mean + g / len(points)
        if method != "sep-fa-vr":
            x = step_into_ball(x, mean, clean, eps_levels)
            continue
        v, total = x, torch.zeros_like(x)
        for k in drawn:
            total = total + gradient_of(points[k], v, target, fa) - gradients[k] + mean
            v = step_into_ball(v, total, clean, eps_levels)
        x = step_into_ball(x, total, clean, eps_levels)
    assert torch.equal(x, torch.floor(x)), "every iterate is whole levels"
    return x.to(torch.uint8)
