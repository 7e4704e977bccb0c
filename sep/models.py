"""Networks by name, for images given as grey levels 0..255.

Legend: B images, C channels, H W pixels, K classes, D feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.resnet import BasicBlock

NetworkName = Literal["resnet8", "resnet18"]

SMALL_IMAGE = 64  # pixels a side; below it a network must not throw resolution away in its first layers


class Network(nn.Module):
    """A trunk that gives penultimate features and a linear head on them; normalises its input itself."""

    mean: Tensor
    std: Tensor

    def __init__(self, trunk: nn.Module, width: int, num_classes: int, mean: Sequence[float], std: Sequence[float]) -> None:
        """Wrap a trunk `(B, C, H, W) -> (B, D)`; `mean` and `std` per channel in grey levels."""
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(width, num_classes)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def features(self, levels: Tensor) -> Tensor:
        """Penultimate features `(B, D)` of images `(B, C, H, W)` in levels 0..255."""
        features: Tensor = self.trunk((levels - self.mean) / self.std)
        return features

    def forward(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Features `(B, D)` and logits `(B, K)` of images `(B, C, H, W)` in levels 0..255."""
        features = self.features(levels)
        return features, self.head(features)


def _resnet8(image_size: int) -> tuple[nn.Module, int]:
    """One basic block at each of the widths 16, 32, 64: small enough to train on a CPU in a minute."""
    widths = (16, 32, 64)
    stem = [nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)]
    blocks: list[nn.Module] = []
    for before, width in zip((widths[0], *widths), widths, strict=False):
        stride = 1 if width == before else 2
        shortcut = None
        if stride != 1:
            shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        blocks.append(BasicBlock(before, width, stride, shortcut))
    trunk = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):  # as torchvision initialises its ResNets
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return trunk, widths[-1]


def _resnet18(image_size: int) -> tuple[nn.Module, int]:
    """Torchvision's ResNet18; for small images with a 3x3 stride-1 stem and no max-pool (method, section 2)."""
    trunk = resnet18()
    if image_size < SMALL_IMAGE:
        trunk.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(trunk.conv1.weight, mode="fan_out", nonlinearity="relu")
        trunk.maxpool = nn.Identity()
    width: int = trunk.fc.in_features
    trunk.fc = nn.Identity()
    return trunk, width


TRUNKS: dict[str, Callable[[int], tuple[nn.Module, int]]] = {"resnet8": _resnet8, "resnet18": _resnet18}
assert tuple(TRUNKS) == get_args(NetworkName)


def build(name: str, num_classes: int, image_size: int, mean: Sequence[float], std: Sequence[float]) -> Network:
    """A freshly initialised network (from torch's global random state).

    Args:
        name: one of `NetworkName`.
        num_classes: K.
        image_size: side of the images in pixels; decides the stem.
        mean: per channel, in grey levels.
        std: per channel, in grey levels.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in TRUNKS:
        raise ValueError(f"unknown network {name!r}; known are {', '.join(TRUNKS)}")
    trunk, width = TRUNKS[name](image_size)
    return Network(trunk, width, num_classes, mean, std)
