"""Pictures in both forms, and the scores that a detector gives them.

Legend: B pictures, C channels, H W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """Pictures in their clean and their protected form.

    Attributes:
        clean: `(B, C, H, W)` uint8, on the device to compute on.
        protected: the same pictures, `(B, C, H, W)` uint8.
        labels: `(B,)` int64.
    """

    clean: Tensor
    protected: Tensor
    labels: Tensor

    def __len__(self) -> int:
        """Return the number of pictures, each of which has two forms."""
        return len(self.labels)

    def joined(self, other: Pairs) -> Pairs:
        """Return these pictures, and then others."""
        both = zip((self.clean, self.protected, self.labels), (other.clean, other.protected, other.labels), strict=True)
        return Pairs(*(torch.cat(parts) for parts in both))


@dataclass(frozen=True)
class Scores:
    """Scores of the pictures that a detector judges; higher for pictures that it takes for protected. On the CPU.

    Attributes:
        values: `(N,)` float32, one for each judged image.
        protected: `(N,)` bool, whether the image is protected.
        pictures: `(N,)` int64, the picture that the image is a form of.
    """

    values: Tensor
    protected: Tensor
    pictures: Tensor


# Pictures to learn from, others to judge, K and a seed to scores. No picture is on both sides.
Detector = Callable[[Pairs, Pairs, int, int], Scores]
