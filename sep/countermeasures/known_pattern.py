"""Estimating the patterns of each class, as somebody can who knows the product, its methods and its code, and not the seed.

Legend: B images, C channels, H W pixels, K classes, P patterns of a class, n images of a class, D differences between neighbouring pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from sep.countermeasures.countermeasure import Epoch, OfClass

LIMIT = 8.0  # levels: the default budget
# Numbers of patterns of a class, and how far the clusters of pictures without patterns are apart, by the measure of `_apart`.
UNIFORM = {2: 0.66, 4: 0.39, 8: 0.24}
APART = 0.1  # more than that, for clusters to be patterns
LOOKED_AT, MEMORY = 1000, 10**9  # images of a class; bytes of all of them
ROUNDS = 20  # of clustering
STEPS, RATE = 300, 0.12  # of descent from differences to a pattern; from 1/4 on it would diverge
GREY = 0.25  # of the mean change, by less than which the channels of a grey pattern differ


def known_pattern(epoch: Epoch, num_classes: int) -> OfClass:
    """Subtract from every image the one of its class's patterns that it carries.

    In a picture, differences between neighbouring pixels are mostly near zero. So their median over the images of a class is that of the
    pattern which they all have, and more exactly than their mean (Dekel et al. 2017, "On the Effectiveness of Visible Watermarks", section
    3.1). The estimate is the image within the budget whose differences come nearest to these. Where a class has several patterns, its
    images are first clustered by their differences.

    Args:
        epoch: batches of an epoch, images `(B, C, H, W)` in levels and labels `(B,)`.
        num_classes: K.

    Returns:
        A function of images `(B, C, H, W)` in levels and labels `(B,)`. Its result is float32, not whole and partly beyond 0..255.
    """
    classes = _some_of_each(epoch, num_classes)
    count = _patterns_of_a_class(classes)
    medians = [_medians(_differences(images.float()), count) for images in classes]
    patterns = _integrated(torch.cat(medians), classes[0].shape[1:])
    grey = patterns.mean(1, keepdim=True).expand_as(patterns)
    patterns = grey if (patterns - grey).abs().mean() < GREY * patterns.abs().mean() else patterns
    return partial(_without_nearest, patterns=patterns.view(num_classes, count, *patterns.shape[1:]))


def _without_nearest(images: Tensor, labels: Tensor, patterns: Tensor) -> Tensor:
    """Return images without that of their class's patterns which they are nearest to, by the sum of absolute differences.

    Larger differences than a pattern can have count no more than the largest that it can have.
    """
    patterns = patterns.to(images.device)
    clipped = _differences(images.float()).clamp(-2 * LIMIT, 2 * LIMIT)
    far = [(clipped - _differences(patterns[labels, place])).abs().sum(-1) for place in range(patterns.shape[1])]
    return images.float() - patterns[labels, torch.stack(far).argmin(0)]


def _some_of_each(epoch: Epoch, num_classes: int) -> list[Tensor]:
    """Return images of each class, on the CPU, as many as memory allows: `(n, C, H, W)`."""
    kept: list[list[Tensor]] = [[] for _ in range(num_classes)]
    for images, labels in epoch(0):
        most = min(LOOKED_AT, MEMORY // (num_classes * images[0].numel()))
        for image, label in zip(images.cpu(), labels.tolist(), strict=True):
            if len(kept[label]) < most:
                kept[label].append(image)
    empty = images[:0].cpu()
    return [torch.stack(each) if each else empty for each in kept]


def _differences(images: Tensor) -> Tensor:
    """Return the differences of each pixel to the one before it in its row and its column: `(..., C, H, W)` to `(..., D)`."""
    return torch.cat([images.diff(dim=dim).flatten(-3) for dim in (-1, -2)], -1)


def _medians(differences: Tensor, count: int) -> Tensor:
    """Return the median differences of each cluster of the images of a class: `(n, D)` to `(P, D)`, zeros where no image is."""
    if len(differences) <= count:  # too few to tell anything
        return differences.new_zeros(count, differences.shape[1])
    which = _clusters(_compared(differences, count), count) if count > 1 else torch.zeros(len(differences), dtype=torch.long)
    members = (differences[which == place] for place in range(count))
    return torch.stack([each.median(0).values if len(each) else differences.new_zeros(differences.shape[1]) for each in members])


def _compared(differences: Tensor, count: int) -> Tensor:
    """Return the images of a class in the few directions that patterns would span, the largest principal components: `(n, P - 1)`."""
    clipped = (differences - differences.median(0).values).clamp(-2 * LIMIT, 2 * LIMIT)
    centred = clipped - clipped.mean(0)
    variances, directions = torch.linalg.eigh(centred @ centred.T)
    points: Tensor = directions * variances.clamp_min(0).sqrt()
    return points[:, -(count - 1) :]


def _clusters(points: Tensor, count: int) -> Tensor:
    """Return the cluster of each point, `(n, d)` to `(n,)`, by k-means; the first centres are far from one another."""
    centres = points[points.norm(dim=1).argmax()][None]
    while len(centres) < count:
        centres = torch.cat([centres, points[torch.cdist(points, centres).amin(1).argmax()][None]])
    for _ in range(ROUNDS):
        which = torch.cdist(points, centres).argmin(1)
        members = [points[which == place] for place in range(count)]
        centres = torch.stack([own.mean(0) if len(own) else centre for own, centre in zip(members, centres, strict=True)])
    return which


def _apart(points: Tensor, count: int) -> float:
    """Return how much nearer points are to the centre of their cluster than to the next one: 0 to 1, a simplified silhouette."""
    which = _clusters(points, count)
    centres = torch.stack([points[which == place].mean(0) for place in torch.unique(which)])
    nearest = torch.cdist(points, centres).sort(1).values
    return float((1 - nearest[:, 0] / nearest[:, 1]).mean())


def _patterns_of_a_class(classes: Sequence[Tensor]) -> int:
    """Return the number of patterns of a class: that whose clusters are farthest apart, beyond what is usual without patterns."""
    found = {1: APART}
    for count, usual in UNIFORM.items():
        apart = [_apart(_compared(_differences(images.float()), count), count) for images in classes if len(images) > 2 * count]
        found[count] = sum(apart) / len(apart) - usual if apart else 0.0
    return max(found, key=lambda count: found[count])


def _integrated(differences: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the images `(P, C, H, W)` within the budget whose differences are nearest to those given, `(P, D)`, by projected descent."""
    patterns = torch.zeros(len(differences), *shape, requires_grad=True)
    for _ in range(STEPS):
        (slope,) = torch.autograd.grad((_differences(patterns) - differences).square().sum() / 2, patterns)
        with torch.no_grad():
            patterns.sub_(RATE * slope).clamp_(-LIMIT, LIMIT)
    return patterns.detach()
