"""The training that comes before the victim's own, such as one of its trunk without labels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from sep.fitting import Change
from sep.train_config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class FirstStage:
    """A training on the images of the victim, by the one training loop of `sep.fitting.fit`.

    Attributes:
        network: trained; it gives (features, logits). It may share modules with the victim's network, which then starts from them.
        config: of this training, the victim's precision among them.
        change: made to each batch.
    """

    network: nn.Module
    config: TrainConfig
    change: Change
