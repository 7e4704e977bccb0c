"""Networks that map images to images, their training, and their use on a whole data set: what adversaries purify a release with.

Legend: B images, C channels, H W pixels, N channels of the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain, count, islice

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

from sep.countermeasures.countermeasure import Epoch
from sep.execution import autocast, backends, moved, resolve

RATE = 2e-3  # peak of the learning rate
WIDTH = 32  # N
GROUPS, EMBEDDED = 8, 64  # of channels that are normalised together; numbers in the embedding of a timestep
TOGETHER = 250  # images that are restored at a time
MULTIPLE = 8  # sides that the network takes as they are: it halves them three times


class Block(nn.Module):
    """Two convolutions beside an identity, after Ho et al. 2020, appendix B, without attention."""

    def __init__(self, before: int, after: int) -> None:
        """Build them, from `before` channels to `after`."""
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(GROUPS, before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1))
        self.timestep = nn.Linear(EMBEDDED, 2 * after)
        self.norm, self.second = nn.GroupNorm(GROUPS, after), nn.Conv2d(after, after, 3, padding=1)
        self.beside = nn.Conv2d(before, after, 1) if before != after else nn.Identity()
        nn.init.zeros_(self.second.weight)

    def forward(self, images: Tensor, embedded: Tensor) -> Tensor:
        """Map `(B, before, H, W)` and the embedding of a timestep, `(B, EMBEDDED)`, to `(B, after, H, W)`."""
        scale, shift = self.timestep(embedded)[:, :, None, None].chunk(2, 1)
        inner = functional.silu(self.norm(self.first(images)) * (1 + scale) + shift)
        added: Tensor = self.beside(images) + self.second(inner)
        return added


class UNet(nn.Module):
    """A small U-Net on squares of 2 x 2 pixels: three sizes, and skips between them."""

    def __init__(self, channels: int = 3, width: int = WIDTH) -> None:
        """Build one that sees `channels` and gives three."""
        super().__init__()
        self.enter = nn.Conv2d(4 * channels, width, 3, padding=1)
        self.embed = nn.Sequential(nn.Linear(EMBEDDED, EMBEDDED), nn.SiLU(), nn.Linear(EMBEDDED, EMBEDDED))
        wider = 2 * width
        self.down = nn.ModuleList([Block(width, width), Block(width, wider), Block(wider, wider)])
        self.middle = Block(wider, wider)
        self.up = nn.ModuleList([Block(2 * wider, wider), Block(2 * wider, width), Block(2 * width, width)])
        last = nn.Conv2d(width, 12, 3, padding=1)
        nn.init.zeros_(last.weight)
        self.leave = nn.Sequential(nn.GroupNorm(GROUPS, width), nn.SiLU(), last)

    def forward(self, images: Tensor, timesteps: Tensor) -> Tensor:
        """Map `(B, channels, H, W)`, of sides that are multiples of 8, and timesteps from 0 to 1, `(B,)`, to `(B, 3, H, W)`."""
        rates = torch.exp(-math.log(1e4) * torch.linspace(0, 1, EMBEDDED // 2, device=images.device))
        angles = 1000 * timesteps[:, None] * rates
        embedded = self.embed(torch.cat([angles.sin(), angles.cos()], 1))
        seen, skips = self.enter(functional.pixel_unshuffle(images, 2)), []
        for place, block in enumerate(self.down):
            seen = block(functional.avg_pool2d(seen, 2) if place else seen, embedded)
            skips.append(seen)
        seen = self.middle(seen, embedded)
        for place, block in enumerate(self.up):
            seen = functional.interpolate(seen, scale_factor=2.0) if place else seen
            seen = block(torch.cat([seen, skips.pop()], 1), embedded)
        return functional.pixel_shuffle(self.leave(seen), 2)


def even(side: int) -> int:
    """Return a side that networks take, in pixels: the next multiple of 8."""
    return side + -side % MULTIPLE


def scaled(levels: Tensor) -> Tensor:
    """Return levels as numbers from -1 to 1, float32. The edge is repeated up to sides that networks take."""
    height, width = levels.shape[2:]
    return functional.pad(levels.float() / 127.5 - 1, (0, even(width) - width, 0, even(height) - height), mode="replicate")


def trained(network: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], epoch: Epoch, steps: int, rate: float = RATE) -> nn.Module:
    """Train a network by Adam, and return it frozen, on the device of the batches.

    Args:
        network: trained in place.
        loss: of a batch, a number; it calls the network.
        epoch: opens the batches, images in levels and whatever else the loss takes.
        steps: batches in all.
        rate: peak of the learning rate, which rises and falls once.
    """
    batches = chain.from_iterable(epoch(number) for number in count())
    first = next(batches)
    device = first[0].device
    network.to(device).to(memory_format=torch.channels_last).train()
    adam = torch.optim.Adam(network.parameters(), rate, fused=True)
    schedule, precision = OneCycleLR(adam, rate, total_steps=steps), resolve("auto", device)
    with backends(precision):
        for images, others in islice(chain([first], batches), steps):
            adam.zero_grad(set_to_none=True)
            with autocast(device, precision):
                value = loss(images, others)
            torch.autograd.backward(value)
            adam.step()
            schedule.step()
    return network.eval().requires_grad_(False)


@torch.no_grad()
def restored(change: Callable[[Tensor], Tensor], images: Tensor, device: torch.device) -> Tensor:
    """Return images after a change that a network makes, some at a time: levels `(B, C, H, W)` to the same, float32, where they lie.

    Args:
        change: of numbers as `scaled` gives them.
        images: of any size.
        device: of the network.
    """
    height, width = images.shape[2:]
    precision, parts = resolve("auto", device), []
    with backends(precision), autocast(device, precision):
        for part in torch.split(images, TOGETHER):
            after = change(scaled(moved(part, device)))[..., :height, :width]
            parts.append(((after.float().clamp(-1, 1) + 1) * 127.5).to(images.device))
    return torch.cat(parts)
