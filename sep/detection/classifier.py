"""Detectors that learn from pictures in both forms, and judge others in both forms.

Legend: B pictures, C channels, H W pixels, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from sep.detection.pairs import Pairs, Scores
from sep.detection.training import logits, small_network, trained
from sep.linear_probe import linear_probe
from sep.models import Network
from sep.train_config import TrainConfig

# Batches are of pictures, each in both forms, so that the forms alone tell the two classes of a batch apart.
LINEAR = TrainConfig(epochs=60, batch_size=64, lr=0.02, weight_decay=5e-3, schedule="one-cycle", augmentation="none")
CONVOLUTIONAL = TrainConfig(batch_size=32, lr=0.1, schedule="one-cycle")
STEPS = 500  # of the convolutional detector, whatever the number of pictures


def linear(learn: Pairs, judge: Pairs, _: int, seed: int, *, features: Callable[[Tensor], Tensor]) -> Scores:
    """Judge by a logistic regression on features, `(B, C, H, W)` uint8 to `(B, D)`."""

    def seen(pairs: Pairs) -> Pairs:
        return Pairs(features(pairs.clean)[:, :, None, None], features(pairs.protected)[:, :, None, None], pairs.labels)

    known = seen(learn)
    return _judged(linear_probe(torch.cat([known.clean, known.protected]), 2), LINEAR, known, seen(judge), seed)


def convolutional(learn: Pairs, judge: Pairs, _: int, seed: int, *, steps: int = STEPS) -> Scores:
    """Judge by a small convolutional network, which averages over all places what it finds there; trained for so many steps, or more."""
    epochs = math.ceil(steps / max(1, len(learn) // CONVOLUTIONAL.batch_size))
    return _judged(small_network(learn.clean, 2, seed), replace(CONVOLUTIONAL, epochs=epochs), learn, judge, seed)


def _judged(network: Network, config: TrainConfig, learn: Pairs, judge: Pairs, seed: int) -> Scores:
    def both_forms(chosen: Tensor) -> tuple[Tensor, Tensor]:
        part = chosen.to(learn.clean.device)
        return torch.cat([learn.clean[part], learn.protected[part]]), torch.arange(2).repeat_interleave(len(part))

    trained(network, config, both_forms, len(learn), seed)
    found = torch.cat([logits(network, images) for images in (judge.clean, judge.protected)])
    count = len(judge)
    return Scores(found[:, 1] - found[:, 0], torch.arange(2).repeat_interleave(count).bool(), torch.arange(count).repeat(2))
