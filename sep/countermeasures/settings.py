"""Countermeasures that change the settings of the training and nothing else. They need no torch."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from sep.train_config import TrainConfig

EARLY = 5  # early stopping trains for one epoch in this many
FINE_TUNING = 3  # and fine-tuning for one in this many
FINE_RATE, HEAD_RATE = 0.02, 0.05  # peaks of their one-cycle schedules


def without_augmentation(config: TrainConfig) -> TrainConfig:
    """Train on images that are neither cropped nor flipped (a setting of Huang et al. 2021, "Unlearnable Examples")."""
    return replace(config, augmentation="none")


def stopped_early(config: TrainConfig) -> TrainConfig:
    """Train for a fifth of the epochs, with the whole schedule of the learning rate in them.

    Protections are learned in the course of training (Sandoval-Segura et al. 2022, "Poisons that are learned faster are more effective"),
    so that the best epoch is an early one. An adversary without clean images cannot tell which one, and can only stop by a rule. The
    schedule is compressed, not cut off, because a training that ends at a high rate is bad for another reason.
    """
    epochs = ceil(config.epochs / EARLY)
    return replace(config, epochs=epochs, warmup_epochs=min(config.warmup_epochs, epochs - 1))


def fine_tuned(config: TrainConfig) -> TrainConfig:
    """Train a network that has learned from other images before: a third of the epochs, at a low rate that rises and falls."""
    return replace(config, epochs=ceil(config.epochs / FINE_TUNING), lr=FINE_RATE, schedule="one-cycle", warmup_epochs=0)


def head_alone(config: TrainConfig) -> TrainConfig:
    """Train a linear head on standardised features, which are computed once and therefore not augmented."""
    return replace(config, lr=HEAD_RATE, schedule="one-cycle", warmup_epochs=0, augmentation="none")
