"""What the perturbation descends on: a wrong target class, and the two losses towards it (method, section 3).

Legend: B images, K classes, D feature width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from sep.choices import Targets as Targets


def shifted(labels: Tensor, num_classes: int) -> Tensor:
    """The paper's fixed map `g(y) = (y + K//2) mod K`, `(B,)` -> `(B,)`."""
    return (labels + num_classes // 2) % num_classes


def derangement(num_classes: int, generator: torch.Generator) -> Tensor:
    """A permutation of the classes that leaves none in its place, `(K,)`, each such one equally likely.

    Raises:
        ValueError: there is only one class, which has nowhere to go.
    """
    if num_classes < 2:
        raise ValueError(f"target classes permute among at least 2 classes, got {num_classes}")
    while True:  # a random permutation is one in more than a third of all draws
        order = torch.randperm(num_classes, generator=generator)
        if (order != torch.arange(num_classes)).all():
            return order


def choose_targets(kind: Targets, labels: Tensor, classes: Sequence[int], generator: torch.Generator, draws: Tensor) -> Tensor:
    """The class each image is drawn towards, or, untargeted, away from: `(B,)`.

    Args:
        kind: shift: the paper's map over `classes`; random-class: one derangement of them for all images; per-sample: for each image one of
            the others; untargeted: its own.
        labels: true classes `(B,)`, all of them among `classes`.
        classes: those that are protected, K of them in ascending order; targets stay among them.
        generator: on the CPU; source of the derangement.
        draws: a large random non-negative integer for each image, `(B,)` int64; source of its own wrong class.

    Raises:
        ValueError: there is only one class.
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
    """SEP's loss, summed over images so that no image's gradient depends on its batch: `(B, K), (B,)` -> scalar."""
    return functional.cross_entropy(logits, targets, reduction="sum")


def feature_alignment(features: Tensor, wanted: Tensor) -> Tensor:
    """`sum_b ||h_b - mu_b||^2 / D`: features `(B, D)` towards their targets' class means `(B, D)` -> scalar."""
    return (features - wanted).square().sum() / features.shape[1]
