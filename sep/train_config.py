"""The settings of a training, without torch: a command line reads them before anything is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from sep.choices import Precision

Augmentation = Literal["none", "crop", "crop-flip", "resized-crop-flip"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a training with SGD (method, section 2)."""

    epochs: int = 120
    """passes over the training images"""
    batch_size: int = 128
    """images per step, over all workers together"""
    lr: float = 0.1
    """learning rate; the peak of a one-cycle schedule"""
    momentum: float = 0.9
    """momentum of SGD"""
    weight_decay: float = 5e-4
    """weight decay of SGD"""
    schedule: Literal["step", "one-cycle"] = "step"
    """step: x0.1 after 62.5 % and 75 % of the epochs (75 and 90 of 120); one-cycle: up to lr and down to zero"""
    warmup_epochs: int = 1
    """epochs of linear warm-up from lr/100 in the step schedule"""
    augmentation: Augmentation = "crop-flip"
    """random changes of training batches; crop: shifts by an eighth of the side; resized-crop: 8-100 % of the area"""
    precision: Precision = "auto"
    """arithmetic of training and testing; auto: float32 on a CPU; bf16 on a GPU that has it, else tf32"""
    recorded: bool = True
    """on one GPU, record the training step once and replay it: the host starts one graph instead of some hundreds of kernels"""

    def __post_init__(self) -> None:
        """Refuse settings that no training can follow.

        Raises:
            ValueError: a number is out of range.
        """
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be above 0 and finite, got {self.lr}")
        if self.warmup_epochs < 0:
            raise ValueError(f"warmup_epochs must be 0 or more, got {self.warmup_epochs}")
