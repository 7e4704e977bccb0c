"""Objectives of the perturbation: the wrong class an image is drawn towards, and the two losses (method, section 3).

Legend: B images, K classes, D feature width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from sep.choices import Targets


def shifted(labels: Tensor, num_classes: int) -> Tensor:
    """Return the paper's fixed map of labels, `g(y) = (y + K//2) mod K`, `(B,)` -> `(B,)`."""
    return (labels + num_classes // 2) % num_classes


def derangement(num_classes: int, generator: torch.Generator) -> Tensor:
    """Return a permutation of the classes without a fixed point, `(K,)`, uniformly drawn.

    Raises:
        ValueError: K is 1.
    """
    if num_classes < 2:
        raise ValueError(f"target classes permute among at least 2 classes, got {num_classes}")
    while True:  # more than a third of all permutations have no fixed point
        order = torch.randperm(num_classes, generator=generator)
        if (order != torch.arange(num_classes)).all():
            return order


def choose_targets(kind: Targets, labels: Tensor, classes: Sequence[int], generator: torch.Generator, draws: Tensor) -> Tensor:
    """Return the class each image is drawn towards, or, untargeted, away from: `(B,)`.

    Args:
        kind: shift: the paper's map over `classes`; random-class: one derangement of them for all images; per-sample: a random
            wrong class for each image; untargeted: the true class.
        labels: true classes `(B,)`, all among `classes`.
        classes: the K protected classes in ascending order; targets are among them.
        generator: on the CPU; source of the derangement.
        draws: a large random non-negative integer for each image, `(B,)` int64; source of its wrong class under per-sample.

    Raises:
        ValueError: K is 1, and the kind needs a wrong class.
    """
    if kind == "untargeted":
        return labels
    count = len(classes)
    if count < 2:
        raise ValueError(f"wrong classes are chosen among the protected ones, which must be at least 2; got {count}")
    among = torch.tensor(classes)
    place = torch.searchsorted(among, labels)
    assert torch.equal(among[place], labels), "an image of a class that is not protected"
    if kind == "shift":
        return among[shifted(place, count)]
    if kind == "random-class":
        return among[derangement(count, generator)[place]]
    return among[(place + 1 + draws % (count - 1)) % count]


def target_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return SEP's loss, summed over images so that no gradient depends on the batch: `(B, K), (B,)` -> scalar."""
    return functional.cross_entropy(logits, targets, reduction="sum")


def feature_alignment(features: Tensor, wanted: Tensor) -> Tensor:
    """Return `sum_b ||h_b - mu_b||^2 / D`: from features `(B, D)` to the class means of their targets `(B, D)` -> scalar."""
    return (features - wanted).square().sum() / features.shape[1]
