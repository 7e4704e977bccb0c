"""Contrastive learning without labels (Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations").

Protections bind changes to labels, which this does not read; Wang et al. 2024, "Efficient Availability Attacks against Supervised and
Contrastive Learning Simultaneously", measure them by it.

Legend: B images, C channels, H W pixels, D feature width.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from sep.at_rest import AtRest
from sep.augment import LEAST_AREA, beside, flip, resized_crop
from sep.countermeasures.first_stage import FirstStage
from sep.models import Network
from sep.train_config import TrainConfig

LONGER = 5  # times as many epochs as the victim: 1,000 to its 200 in Wang et al.
RATE, OF_BATCH = 0.5, 512  # learning rate, in proportion to the size of a batch
DECAY = 1e-4
TEMPERATURE = 0.5  # Chen et al., appendix B.9, on CIFAR-10
PROJECTED = 128  # dimensions that are compared
# Chen et al., appendix A and B.9: chances, and half of the full strength for small images; no blur.
JITTERED, GREYED = 0.8, 0.2
STRENGTH, HUE = 0.4, 0.1  # of brightness, contrast and saturation; of hue, in turns
# From R, G, B to luma, the first, and two coordinates of colour, which a change of hue turns.
YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


class Contrast(nn.Module):
    """A network and a projection of its features, as a classifier: among all other images of a batch, which is the same picture?

    The cross-entropy of its answers is the loss of Chen et al., equation 1.
    """

    def __init__(self, network: Network) -> None:
        """Share the network's trunk."""
        super().__init__()
        width = network.head.in_features
        self.network = network
        self.projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, PROJECTED)).to(network.mean.device)

    def forward(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Return features `(B, D)`, and for each image its similarity to every other one, `(B, B)`, as logits."""
        features = self.network.features(levels)
        directions = functional.normalize(self.projection(features).float())
        itself = torch.eye(len(levels), dtype=torch.bool, device=levels.device)
        return features, (directions @ directions.T / TEMPERATURE).masked_fill(itself, -torch.inf)


def simclr(network: Network, config: TrainConfig) -> FirstStage:
    """Learn features by telling two distorted copies of an image from all other images; a linear head is trained on them afterwards."""
    own = replace(
        config,
        epochs=LONGER * config.epochs,
        lr=RATE * config.batch_size / OF_BATCH,
        weight_decay=DECAY,
        schedule="one-cycle",
        warmup_epochs=0,
        augmentation="none",
    )
    return FirstStage(network=Contrast(network), config=own, change=two_copies)


def two_copies(_: AtRest, levels: Tensor, labels: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return two distorted copies of each image, `(2B, C, H, W)`, and the place of the other copy of each, `(2B,)`; labels are not read."""
    copies = torch.cat([distorted(levels, generator) for _ in range(2)])
    return copies, torch.arange(len(copies), device=levels.device).roll(len(labels))


def distorted(levels: Tensor, generator: Generator, strength: float = 1.0, draws: int | None = None) -> Tensor:
    """Apply the distortions of Chen et al.: a random window, a flip, random colours, and sometimes grey.

    Args:
        levels: `(B, 3, H, W)`, floats.
        generator: on the CPU.
        strength: factor on how far windows and colours go, and on the chances of colours and of grey, as Wang et al. have it.
        draws: number of draws: B if not given, or one for all images.

    Returns:
        Levels, `(B, 3, H, W)`, not whole.
    """
    levels = flip(resized_crop(levels, generator, 1 - strength * (1 - LEAST_AREA), draws), generator, draws)
    shape = (draws or len(levels), 1, 1, 1)
    shifts = beside(levels, strength * (2 * torch.rand(4, *shape, generator=generator) - 1))
    coins = beside(levels, torch.rand(2, *shape, generator=generator))
    jittered = torch.where(coins[0] < strength * JITTERED, _jittered(levels, *shifts), levels)
    return torch.where(coins[1] < strength * GREYED, _luma(jittered).expand_as(levels), jittered).clamp(0, 255)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # a gradient may need what a test made first
def _colours(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return `YIQ` and its inverse, `(3, 3)` each. A GPU would be waited for in every batch that they are sent with."""
    colours = torch.tensor(YIQ, dtype=dtype)
    return colours.to(device), torch.linalg.inv(colours).to(device)


def _luma(levels: Tensor) -> Tensor:
    return (levels * _colours(levels.dtype, levels.device)[0][0].view(1, 3, 1, 1)).sum(1, keepdim=True)


def _jittered(levels: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue, in this order, by draws from -1 to 1, `(B, 1, 1, 1)` each."""
    bright = (1 + STRENGTH * brightness) * levels
    middle = _luma(bright).mean((2, 3), keepdim=True)
    contrasted = middle + (1 + STRENGTH * contrast) * (bright - middle)
    grey = _luma(contrasted)
    saturated = grey + (1 + STRENGTH * saturation) * (contrasted - grey)
    angle = 2 * math.pi * HUE * hue.flatten()
    turn = torch.eye(3, device=levels.device).repeat(len(angle), 1, 1)
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -angle.sin(), angle.sin()
    colours, back = _colours(levels.dtype, levels.device)
    mixing = back @ turn @ colours
    # Channel by channel: the sums of a product of matrices would depend on the number of images.
    return torch.stack([(mixing[:, channel, :, None, None] * saturated).sum(1) for channel in range(3)], 1)
