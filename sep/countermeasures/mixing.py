"""Countermeasures that cover parts of training images or mix the images of a batch.

Legend: B images, C channels, H W pixels, K classes. Every function maps float levels `(B, C, H, W)` and the probabilities of the
classes `(B, K)` to the same; `generator` is on the CPU, and draws do not depend on the images.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2

from sep.augment import beside, drawing_from

GREY = 127.5  # about what normalisation makes zero


def cutout(levels: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cover a random square of half the side (16 pixels of 32) of each image with grey (DeVries & Taylor 2017, "Cutout").

    Its centre is any pixel, so that part of it may lie outside, as in the paper.
    """
    count, _, height, width = levels.shape
    side = min(height, width) // 2
    top, left = (torch.randint(length, (count, 1), generator=generator) - side // 2 for length in (height, width))
    rows, columns = (
        (torch.arange(length) >= start) & (torch.arange(length) < start + side) for start, length in ((top, height), (left, width))
    )
    hole = beside(levels, rows[:, None, :, None] & columns[:, None, None, :])
    return torch.where(hole, GREY, levels), targets


def cutmix(levels: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Replace a box of each image by that of its neighbour in the batch and share the classes by area (Yun et al. 2019, "CutMix").

    As in the paper, a whole batch has one box, whose share is uniform from 0 to 1.
    """
    with drawing_from(generator):
        mixed, shared = v2.CutMix(alpha=1.0)(levels, targets)
    return mixed, shared


def mixup(levels: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Average each image and its classes with those of its neighbour in the batch (Zhang et al. 2018, "mixup").

    A whole batch has one weight, uniform from 0 to 1, as in the paper for CIFAR-10.
    """
    with drawing_from(generator):
        mixed, shared = v2.MixUp(alpha=1.0)(levels, targets)
    return mixed, shared
