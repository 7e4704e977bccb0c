"""Iterative filtering: protected images are the ones that a network learns first.

Legend: B pictures, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sep.detection.pairs import Pairs, Scores
from sep.detection.training import logits, small_network, trained
from sep.train_config import TrainConfig

ROUNDS = 3
PROTECTED = 0.5  # of the pictures of a mix
TRAINING = TrainConfig(epochs=6, batch_size=16, lr=0.1, schedule="one-cycle", augmentation="none")


def iterative_filtering(learn: Pairs, judge: Pairs, num_classes: int, seed: int) -> Scores:
    """Find the protected images of a mix by their labels alone (Yu et al. 2024, "Unlearnable Examples Detection via Iterative Filtering").

    Of the paper are the observation that a network adapts to protected images sooner than to clean ones, so that after a short training
    it gets clean ones wrong; K extra classes; and rounds that refine the labels: what is taken for clean moves to the extra class of its
    label, and may come back. Nobody needs to know of any image whether it is clean.

    Ours are the rest. A small network gets many clean images right as well, so that not the wrong ones are taken for clean, but the half
    that is seen least in its own class: among all classes in the first round, beside the extra class of its label in the later ones. That
    is also the score, after the last round. Each round trains a new network.

    Args:
        learn: pictures; nothing but their labels is known here.
        judge: others. Of all of them together, half are in the mix in their protected form and the others in their clean one.
        num_classes: K.
        seed: of the mix and of the trainings.
    """
    mix = learn.joined(judge)
    draws = torch.Generator().manual_seed(seed)
    protected = torch.rand(len(mix), generator=draws).argsort() < PROTECTED * len(mix)
    images = torch.where(protected.to(mix.clean.device)[:, None, None, None], mix.protected, mix.clean)
    labels = mix.labels
    own, given = labels[:, None], labels
    for number in range(ROUNDS):
        found = _learned(images, given, num_classes, seed + number).log_softmax(1)
        others = found.gather(1, own + num_classes) if number else torch.logsumexp(found.scatter(1, own, -torch.inf), 1, keepdim=True)
        score = (found.gather(1, own) - others)[:, 0]
        given = torch.where(score > score.median(), labels, labels + num_classes)
    return Scores(score, protected, torch.arange(len(mix)))


def _learned(images: Tensor, given: Tensor, num_classes: int, seed: int) -> Tensor:
    """Return the logits `(B, 2K)` of images by a network that was trained on them for a short time."""
    network = small_network(images, 2 * num_classes, seed)

    def some(chosen: Tensor) -> tuple[Tensor, Tensor]:
        return images[chosen.to(images.device)], given[chosen]

    return logits(trained(network, TRAINING, some, len(images), seed), images)
