"""What a stranger may do against the protection, before training on the released images or while training.

Adding a countermeasure is one function, in the module of its kind, and one line in the table.

Legend: B images, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, prod
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from sep.countermeasures import adversary, distortion, mixing, preprocessing
from sep.countermeasures.projection import orthogonal_projection
from sep.fitting import Change
from sep.train_config import TrainConfig

Config = TypeVar("Config", bound=TrainConfig)
Data = Literal["clean", "protected"]
Transform = Callable[[Tensor], Tensor]
Epoch = Callable[[int], Iterable[tuple[Tensor, Tensor]]]
EARLY = 5  # a training that stops early takes one epoch of so many
DILUTED, CLEAN_ONLY = "dilution", "clean-only"
SHARE = re.compile(rf"({DILUTED}|{CLEAN_ONLY})-([1-9]\d?)")


@dataclass(frozen=True, kw_only=True)
class Countermeasure:
    """What is changed about an ordinary training; everything else stays as it is.

    Attributes:
        stored: of the stored images, once, `(B, 3, H, W)` uint8 each way.
        fitted: the same, but known only when the whole training set was looked at: `(epoch, K)` gives a function of images, whose result
            need not be whole levels.
        mixed: of each training batch after augmentation: float levels `(B, C, H, W)`, class probabilities `(B, K)` and a generator give
            other levels and probabilities.
        distorted: the same where the classes stay.
        hardened: the same, against the network as it is at that step.
        trained: of how training is done.
        clean_percent: of the protected images, how many a stranger has from elsewhere as they were before.
        clean_only: of the protected images, a stranger takes those alone.
        cost: of a training epoch, in ordinary ones, as measured on a CPU with ResNet-8 and 32-pixel images.
        revision: to be raised whenever the same name comes to do something else, so that victims of before are trained again.
    """

    stored: Transform | None = None
    fitted: Callable[[Epoch, int], Transform] | None = None
    mixed: Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]] | None = None
    distorted: Callable[[Tensor, torch.Generator], Tensor] | None = None
    hardened: Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor] | None = None
    trained: Callable[[TrainConfig], TrainConfig] | None = None
    clean_percent: int = 0
    clean_only: bool = False
    cost: float = 1.0
    revision: int = 0

    def on_stored(self, images: Tensor) -> Tensor:
        """Images after it, rounded to whole levels before if they are not."""
        assert self.stored is not None
        return self.stored(preprocessing.as_stored(images))

    def on_batch(self, network: nn.Module, levels: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A training batch after it."""
        if self.mixed:
            return self.mixed(levels, targets, generator)
        if self.distorted:
            return self.distorted(levels, generator), targets
        if self.hardened:
            return self.hardened(network, levels, targets, generator), targets
        return levels, targets


def without_augmentation(config: TrainConfig) -> TrainConfig:
    """Training images as they are: neither cropped nor flipped (a setting of Huang et al. 2021, "Unlearnable Examples")."""
    return replace(config, augmentation="none")


def stopped_early(config: TrainConfig) -> TrainConfig:
    """A fifth of the epochs, with the whole schedule of the learning rate in them.

    Protections are learned in the course of training (Sandoval-Segura et al. 2022, "Poisons that are learned faster are more effective"),
    so that the best epoch is an early one. A stranger without clean images cannot see which: all that is left is to stop by a rule.
    Compressed and not cut off, because a training that ends at a high rate is bad for another reason.
    """
    epochs = ceil(config.epochs / EARLY)
    return replace(config, epochs=epochs, warmup_epochs=min(config.warmup_epochs, epochs - 1))


def dilution(percent: int) -> Countermeasure:
    """Some images from elsewhere as they were before protection (a setting of Huang et al. 2021, "Unlearnable Examples", section 4.1)."""
    return Countermeasure(clean_percent=percent)


def clean_only(percent: int) -> Countermeasure:
    """The clean images of a dilution and none of the protected ones, for as many steps.

    Nothing that is done against the protection, but what a dilution has to be held against: only what it gets beyond this comes from
    protected images (Huang et al. 2021, "Unlearnable Examples", who put the clean share alone beside the mix for that reason).
    """
    return Countermeasure(clean_percent=percent, clean_only=True)


SHARES: dict[str, Callable[[int], Countermeasure]] = {DILUTED: dilution, CLEAN_ONLY: clean_only}

COUNTERMEASURES: dict[str, Countermeasure] = {
    "none": Countermeasure(),
    "no-augmentation": Countermeasure(trained=without_augmentation),
    "cutout": Countermeasure(mixed=mixing.cutout),
    "cutmix": Countermeasure(mixed=mixing.cutmix),
    "mixup": Countermeasure(mixed=mixing.mixup),
    "grayscale": Countermeasure(stored=preprocessing.grayscale),
    "jpeg-10": Countermeasure(stored=partial(preprocessing.jpeg, quality=10)),
    "jpeg-50": Countermeasure(stored=partial(preprocessing.jpeg, quality=50)),
    "jpeg-90": Countermeasure(stored=partial(preprocessing.jpeg, quality=90)),
    "bit-depth-2": Countermeasure(stored=partial(preprocessing.bit_depth, bits=2)),
    "gaussian-blur": Countermeasure(stored=preprocessing.gaussian_blur),
    "trivial-augment": Countermeasure(distorted=distortion.trivial_augment, cost=1.2),
    "ueraser": Countermeasure(hardened=adversary.ueraser, cost=3.2, revision=2),
    "adversarial-4": Countermeasure(hardened=partial(adversary.adversarial, eps_levels=4), cost=5.1),
    "adversarial-8": Countermeasure(hardened=partial(adversary.adversarial, eps_levels=8), cost=5.1),
    "random-warp": Countermeasure(distorted=distortion.random_warp),
    "orthogonal-projection": Countermeasure(fitted=orthogonal_projection),
    "early-stop": Countermeasure(trained=stopped_early),
    **{f"{kind}-{percent}": share(percent) for kind, share in SHARES.items() for percent in (1, 10, 20, 50)},
}


@dataclass(frozen=True)
class Plan:
    """Countermeasures taken together, in the order given."""

    parts: tuple[Countermeasure, ...]

    @property
    def on_images(self) -> list[Countermeasure]:
        """Those that change the images before training."""
        return [part for part in self.parts if part.stored or part.fitted]

    @property
    def clean_percent(self) -> int:
        """Of the protected images, how many are taken as they were before."""
        return sum(part.clean_percent for part in self.parts)

    @property
    def clean_only(self) -> bool:
        """Whether those are all that is taken of the protected images."""
        return any(part.clean_only for part in self.parts)

    @property
    def revision(self) -> int:
        """Of all of them together."""
        return sum(part.revision for part in self.parts)

    @property
    def cost(self) -> float:
        """Of a training epoch, in ordinary ones."""
        return prod(part.cost for part in self.parts)

    def training(self, config: Config) -> Config:
        """How training is done."""
        changed: TrainConfig = config
        for part in self.parts:
            changed = part.trained(changed) if part.trained else changed
        return changed  # type: ignore[return-value]  # what replaces fields keeps the type

    def change(self, num_classes: int) -> Change | None:
        """What is done to training batches of K classes; None where it is nothing."""
        parts = [part for part in self.parts if part.mixed or part.distorted or part.hardened]
        return partial(_change, parts, num_classes) if parts else None


def _change(
    parts: list[Countermeasure], num_classes: int, network: nn.Module, levels: Tensor, labels: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    targets = functional.one_hot(labels, num_classes).float()
    for part in parts:
        levels, targets = part.on_batch(network, levels, targets, generator)
    return levels, targets


def plan(name: str) -> Plan:
    """The countermeasures of a name such as `grayscale+jpeg-10`, to be done in that order.

    Raises:
        ValueError: one is unknown, or they cannot be combined.
    """
    names = name.split("+")
    parts = [_named(each) for each in names]
    reason = ""
    if "none" in names and len(names) > 1:
        reason = "none is nothing"
    elif len(set(names)) < len(names):
        reason = "one is named twice"
    elif sum(part.clean_percent > 0 for part in parts) > 1:
        reason = "a training set has one share of clean images"
    elif sum(part.hardened is not None for part in parts) > 1:
        reason = "only one can look for the hardest images"
    if reason:
        raise ValueError(f"countermeasure {name!r} cannot be: {reason}; known are {', '.join(COUNTERMEASURES)}")
    return Plan(tuple(parts))


def _named(name: str) -> Countermeasure:
    if name in COUNTERMEASURES:
        return COUNTERMEASURES[name]
    share = SHARE.fullmatch(name)
    if share is None:
        raise ValueError(
            f"unknown countermeasure {name!r}; known are {', '.join(COUNTERMEASURES)}, {' and '.join(SHARES)} by any other percentage "
            "from 1 to 99, and several of them joined by +"
        )
    return SHARES[share[1]](int(share[2]))


def clean_share(name: str) -> str | None:
    """Which of `SHARES` a countermeasure has; none where all protected images are taken as they are."""
    return next((share[1] for each in name.split("+") if (share := SHARE.fullmatch(each))), None)


def control_of(name: str) -> str:
    """The countermeasure that tells what the clean images of a dilution give alone."""
    return SHARE.sub(rf"{CLEAN_ONLY}-\2", name)


def trained_as(name: str, data: Data) -> tuple[str, Data]:
    """The training that a countermeasure on images of that kind comes down to, under the name and images of the first that is like it.

    Clean images cannot be diluted, and where clean images alone are taken, it does not matter what was done to the others.
    """
    kind = clean_share(name)
    if kind == CLEAN_ONLY:
        return name, "clean"
    if kind == DILUTED and data == "clean":
        return "+".join(each for each in name.split("+") if not SHARE.fullmatch(each)) or "none", data
    return name, data
