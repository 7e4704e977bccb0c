"""Searching for transformations of images after which a linear head on a pretrained network learns what they show.

After Hapuarachchi et al. 2024, "Nonlinear Transformations Against Unlearnable Datasets".

Legend: B images, C channels, H W pixels, K classes.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from sep.countermeasures.countermeasure import Epoch, Transform
from sep.countermeasures.preprocessing import as_stored, bit_depth, gaussian_blur, grayscale, resize
from sep.fitting import accuracy, confusion, fit
from sep.linear_probe import features_of, linear_probe
from sep.models import Network
from sep.train_config import TrainConfig

LOOKED_AT = 1000  # images: heads learn from one half of them, and are judged by the other
MOST = 3  # transformations, one after the other
GAIN = 1.0  # points that one more must bring
HEAD = TrainConfig(epochs=60, lr=0.05, schedule="one-cycle", warmup_epochs=0, augmentation="none")  # a step an epoch


def dilated(images: Tensor) -> Tensor:
    """Replace every level by the largest of the 3x3 pixels around it."""
    return as_stored(functional.max_pool2d(images.float(), 3, stride=1, padding=1))


def eroded(images: Tensor) -> Tensor:
    """Replace every level by the smallest of the 3x3 pixels around it."""
    return as_stored(-functional.max_pool2d(-images.float(), 3, stride=1, padding=1))


def median(images: Tensor) -> Tensor:
    """Replace every level by the median of the 3x3 pixels around it."""
    windows = functional.pad(images.float(), (1, 1, 1, 1), mode="replicate").unfold(2, 3, 1).unfold(3, 3, 1)
    return as_stored(windows.flatten(-2).median(-1).values)


TRANSFORMATIONS: dict[str, Transform] = {
    "dilated": dilated,
    "eroded": eroded,
    "median": median,
    "blurred": gaussian_blur,
    "grey": grayscale,
    "four levels": partial(bit_depth, bits=2),
    "two levels": partial(bit_depth, bits=1),
    "smaller": partial(resize, percent=50),
}


def nonlinear(epoch: Epoch, num_classes: int, network: Network) -> Transform:
    """Choose transformations one after the other, each the best next one, by a linear head on the features of the network.

    The paper judges by accuracy on validation images. An adversary has none but those of the release, of which a head gets the more right
    the better it knows the protection. So a head learns from images after the transformations, and is judged by other images of the
    release, on average over all transformations and none: a protection survives few of them, and what a picture shows survives most.

    Args:
        epoch: batches of an epoch, images `(B, C, H, W)` in levels and labels `(B,)`.
        num_classes: K.
        network: pretrained.

    Returns:
        A function of images, `(B, 3, H, W)` to uint8 of the same shape, which rounds fractions of levels before.
    """
    images, labels = _some(epoch)
    half = len(labels) // 2
    learned, others = images[:half], images[half:]
    with torch.random.fork_rng(devices=[]):
        seen = [features_of(network, [(change(others), labels[half:])]) for change in (as_stored, *TRANSFORMATIONS.values())]

        def judged(changed: Tensor) -> float:
            return _accuracy(features_of(network, [(changed, labels[:half])]), seen, num_classes)

        best, chosen = judged(learned), list[Transform]()
        while len(chosen) < MOST:
            candidates = [(judged(change(learned)), change) for change in TRANSFORMATIONS.values()]
            now, change = max(candidates, key=lambda candidate: candidate[0])
            if now < best + GAIN:
                break
            best, learned = now, change(learned)
            chosen.append(change)
    return partial(_one_after_the_other, chosen)


def _one_after_the_other(changes: list[Transform], images: Tensor) -> Tensor:
    images = as_stored(images)
    for change in changes:
        images = change(images)
    return images


def _some(epoch: Epoch) -> tuple[Tensor, Tensor]:
    """Return so many images as stored, `(B, C, H, W)`, and their labels, on the CPU."""
    images, labels = [], []
    for batch, own in epoch(0):
        images.append(as_stored(batch).cpu())
        labels.append(own.cpu())
        if sum(map(len, labels)) >= LOOKED_AT:
            break
    return torch.cat(images)[:LOOKED_AT], torch.cat(labels)[:LOOKED_AT]


def _accuracy(learned: tuple[Tensor, Tensor], seen: list[tuple[Tensor, Tensor]], num_classes: int) -> float:
    """Return what a linear head on some features gets right of others, in percent, on average over their transformations."""
    head = linear_probe(learned[0], num_classes)
    for _ in fit(head, HEAD, lambda _: [learned], 1, lambda _: torch.Generator()):
        pass
    return sum(accuracy(confusion(head, [part], num_classes)) for part in seen) / len(seen)
