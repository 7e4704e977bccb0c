"""The standing set: the adversaries that an audit trains against a release, cheapest and strongest first.

A new countermeasure joins by a line in the tuple, at the place of its strength.
"""

from __future__ import annotations

from collections.abc import Iterable

from sep.countermeasures.registry import plan
from sep.train_config import TrainConfig

# One strength of each kind, strongest first: by what a victim reached on TAP or SEP with 8 levels on CIFAR-10 (Liu et al. 2023, "Image
# Shortcut Squeezing", and APBench), or else by how much it undid in short trainings. Cost comes before strength: see `cheapest_first`.
STANDING = (
    "jpeg-10",  # 84 %
    "d-vae",  # 83 % (Wang et al. 2025, "BridgePure", table 1)
    "adversarial-8",  # 80 %
    "ueraser",  # 79 %
    "bit-depth-2",  # 71 %
    "early-stop",
    "pretrained",
    "pretrained-frozen",
    "nonlinear",
    "contrastive",
    "random-warp",
    "staged",
    "known-pattern",
    "class-residual",
    "orthogonal-projection",
    "mixup",  # 15 %
    "grayscale",  # 11 %
    "gaussian-blur",  # 8 %
)


def expected_cost(name: str, config: TrainConfig) -> float:
    """Return the cost of a whole training under a countermeasure, in plain ones with the same settings."""
    counter = plan(name)
    return counter.cost * counter.training(config).epochs / config.epochs


def cheapest_first(names: Iterable[str], config: TrainConfig) -> tuple[str, ...]:
    """Return each of these countermeasures once, in the order to try them in.

    The plain training comes first, whether it is named or not: every cost is a multiple of its own. The others follow by their expected
    cost; of equal cost, the strongest first, and adversaries outside the standing set last.
    """
    given = list(dict.fromkeys(name for name in names if name != "none"))
    ranked = [name for name in STANDING if name in given] + [name for name in given if name not in STANDING]
    return "none", *sorted(ranked, key=lambda name: expected_cost(name, config))
