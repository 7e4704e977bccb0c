"""A detector's network: trained by the one training loop, then asked for its logits.

Legend: B images, C channels, H W pixels, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sep.execution import arithmetic, moved
from sep.fitting import fit
from sep.models import Network, build
from sep.train_config import TrainConfig

TOGETHER = 250  # images that are scored at a time
Batch = tuple[Tensor, Tensor]


def small_network(images: Tensor, outputs: int, seed: int) -> Network:
    """Return a fresh network for images `(B, C, H, W)` uint8, on their device: the smallest that the library has."""
    levels = images.float().transpose(0, 1).flatten(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build("resnet8", outputs, min(images.shape[2:]), levels.mean(1).tolist(), levels.std(1).clamp_min(1).tolist())
    return network.to(images.device).to(memory_format=torch.channels_last)


def trained(network: Network, config: TrainConfig, batch: Callable[[Tensor], Batch], pictures: int, seed: int) -> Network:
    """Train a network in place, and return it.

    Args:
        network: on the device of the batches.
        config: of the training, whose batches hold so many pictures.
        batch: gives images in levels and labels of some pictures, by their numbers.
        pictures: their number; ones that do not fill a batch wait for the next epoch.
        seed: of their order and of the augmentation.

    Raises:
        ValueError: the training diverged.
    """
    size = min(config.batch_size, pictures)
    steps = pictures // size

    def batches(epoch: int) -> Iterator[Batch]:
        order = torch.randperm(pictures, generator=_draws(seed, 2 * epoch))
        return (batch(order[step * size : (step + 1) * size]) for step in range(steps))

    for _ in fit(network, config, batches, steps, lambda epoch: _draws(seed, 2 * epoch + 1)):
        pass
    return network


def _draws(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed + number) % 2**63)


@torch.inference_mode()
def logits(network: Network, images: Tensor) -> Tensor:
    """Return the logits of images `(B, C, H, W)` in levels by a network in eval mode, `(B, K)` float32 on the CPU."""
    network.eval()
    device = network.mean.device
    with arithmetic(device, "auto"):
        parts = [network(moved(part, device).float())[1] for part in torch.split(images, TOGETHER)]
    return torch.cat(parts).float().cpu()
