"""What the perturbation descends on: a wrong target class, and the two losses towards it (method, section 3).

Legend: B images, K classes, D feature width.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def shifted(labels: Tensor, num_classes: int) -> Tensor:
    """The paper's fixed map `g(y) = (y + K//2) mod K`, `(B,)` -> `(B,)`."""
    return (labels + num_classes // 2) % num_classes


def target_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """SEP's loss, summed over images so that no image's gradient depends on its batch: `(B, K), (B,)` -> scalar."""
    return functional.cross_entropy(logits, targets, reduction="sum")


def feature_alignment(features: Tensor, wanted: Tensor) -> Tensor:
    """`sum_b ||h_b - mu_b||^2 / D`: features `(B, D)` towards their targets' class means `(B, D)` -> scalar."""
    return (features - wanted).square().sum() / features.shape[1]
