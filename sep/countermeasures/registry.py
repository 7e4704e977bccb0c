"""Countermeasures of an adversary against the protection, before training on the released images or while training.

A new countermeasure is a function, in the module of its kind, and an entry in the table. The functions are imported when they are called,
so that this table, and with it the command line, needs no torch.

Legend: B images, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from typing import TYPE_CHECKING, Literal, TypeVar

from sep.countermeasures.countermeasure import Countermeasure as Countermeasure
from sep.countermeasures.settings import fine_tuned, head_alone, stopped_early, without_augmentation
from sep.deferred import Deferred
from sep.train_config import TrainConfig

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from sep.at_rest import AtRest
    from sep.countermeasures.first_stage import FirstStage
    from sep.fitting import Change
    from sep.models import Network

Config = TypeVar("Config", bound=TrainConfig)
Data = Literal["clean", "protected"]
CLEAN_ONLY = "clean-only"
OTHERS, PRODUCT = "a network trained on other images", "the method and its budget"  # what an adversary has besides
NUMBER = re.compile(r"(.+)-([1-9]\d*)")
SET_ASIDE = 10  # percent of the images, for a diffusion model unless its name says how many

jpeg = Deferred("sep.countermeasures.preprocessing:jpeg")
webp = Deferred("sep.countermeasures.preprocessing:webp")
resize = Deferred("sep.countermeasures.preprocessing:resize")
bit_depth = Deferred("sep.countermeasures.preprocessing:bit_depth")
diffusion = Deferred("sep.countermeasures.diffusion:diffusion")
bridge = Deferred("sep.countermeasures.bridge:bridge")
adversarial = Deferred("sep.countermeasures.adversary:adversarial")
one_hot = Deferred("torch.nn.functional:one_hot")


def dilution(percent: int) -> Countermeasure:
    """Train with some of the images in their clean form (a setting of Huang et al. 2021, "Unlearnable Examples", section 4.1)."""
    return Countermeasure(clean_percent=percent)


def clean_only(percent: int) -> Countermeasure:
    """Train on the clean images of a dilution and on none of the protected ones, for as many steps.

    This does nothing against the protection. It is the control of a dilution: only accuracy beyond it comes from protected images (Huang
    et al. 2021, "Unlearnable Examples", who show the clean share alone beside the mix for that reason).
    """
    return Countermeasure(clean_percent=percent, clean_only=True)


def jpeg_of(quality: int) -> Countermeasure:
    """Compress by a real JPEG codec."""
    return Countermeasure(stored=partial(jpeg, quality=quality))


def webp_of(quality: int) -> Countermeasure:
    """Compress by a real WebP codec."""
    return Countermeasure(stored=partial(webp, quality=quality))


def resized_to(percent: int) -> Countermeasure:
    """Resize to a percentage of the sides and back."""
    return Countermeasure(stored=partial(resize, percent=percent))


def purified_by_diffusion(percent: int) -> Countermeasure:
    """Purify by a diffusion model of some of the images in their clean form, which the victim does not train on."""
    return Countermeasure(fitted=diffusion, known_percent=percent, costly=True, cost=2.0)


def purified_by_bridge(pairs: int) -> Countermeasure:
    """Purify by what pairs of clean and protected images teach, which the victim does not train on."""
    return Countermeasure(fitted=bridge, known_pairs=pairs, costly=True, cost=2.0)


SHARES: dict[str, Callable[[int], Countermeasure]] = {"dilution": dilution, CLEAN_ONLY: clean_only}
NUMBERED: dict[str, Callable[[int], Countermeasure]] = {"jpeg": jpeg_of, "webp": webp_of, "resize": resized_to, **SHARES}
NUMBERED |= {"diffusion": purified_by_diffusion, "bridge": purified_by_bridge}
MOST = {"bridge": 99_999}  # pairs; others end at 99 percent

COUNTERMEASURES: dict[str, Countermeasure] = {
    "none": Countermeasure(),
    "no-augmentation": Countermeasure(trained=without_augmentation),
    "cutout": Countermeasure(mixed=Deferred("sep.countermeasures.mixing:cutout")),
    "cutmix": Countermeasure(mixed=Deferred("sep.countermeasures.mixing:cutmix")),
    "mixup": Countermeasure(mixed=Deferred("sep.countermeasures.mixing:mixup")),
    "grayscale": Countermeasure(stored=Deferred("sep.countermeasures.preprocessing:grayscale")),
    **{f"jpeg-{quality}": jpeg_of(quality) for quality in (10, 30, 50, 75, 90)},
    "webp-75": webp_of(75),
    "resize-50": resized_to(50),
    "screenshot": Countermeasure(stored=Deferred("sep.countermeasures.preprocessing:screenshot")),
    "bit-depth-2": Countermeasure(stored=partial(bit_depth, bits=2)),
    "gaussian-blur": Countermeasure(stored=Deferred("sep.countermeasures.preprocessing:gaussian_blur")),
    "trivial-augment": Countermeasure(distorted=Deferred("sep.countermeasures.distortion:trivial_augment"), cost=1.2),
    "ueraser": Countermeasure(hardened=Deferred("sep.countermeasures.adversary:ueraser"), cost=3.2, revision=2),
    "adversarial-4": Countermeasure(hardened=partial(adversarial, eps_levels=4), cost=5.1),
    "adversarial-8": Countermeasure(hardened=partial(adversarial, eps_levels=8), cost=5.1),
    "random-warp": Countermeasure(distorted=Deferred("sep.countermeasures.distortion:random_warp")),
    "orthogonal-projection": Countermeasure(fitted=Deferred("sep.countermeasures.projection:orthogonal_projection")),
    "class-residual": Countermeasure(fitted=Deferred("sep.countermeasures.projection:class_residual")),
    "known-pattern": Countermeasure(fitted=Deferred("sep.countermeasures.known_pattern:known_pattern"), knowledge=PRODUCT),
    "d-vae": Countermeasure(fitted=Deferred("sep.countermeasures.d_vae:d_vae"), costly=True, cost=2.0),
    "diffusion": purified_by_diffusion(SET_ASIDE),
    **{f"bridge-{pairs}": purified_by_bridge(pairs) for pairs in (100, 500, 4000)},
    "early-stop": Countermeasure(trained=stopped_early),
    "staged": Countermeasure(prepared=Deferred("sep.countermeasures.staged:staged")),
    "pretrained": Countermeasure(initial=True, trained=fine_tuned, cost=10.0),
    "pretrained-frozen": Countermeasure(initial=True, frozen=True, trained=head_alone, cost=0.5),
    "nonlinear": Countermeasure(
        initial=True, searched=Deferred("sep.countermeasures.nonlinear:nonlinear"), frozen=True, trained=head_alone, cost=2.0
    ),
    "contrastive": Countermeasure(first=Deferred("sep.countermeasures.contrastive:simclr"), frozen=True, trained=head_alone, cost=11.0),
    **{f"{kind}-{percent}": share(percent) for kind, share in SHARES.items() for percent in (1, 10, 20, 50)},
}


# Others share the name.
VIEW_OF = {"grayscale": "gray", "bit-depth-2": "bits-2", "gaussian-blur": "blur", "random-warp": "warp", "contrastive": "simclr-100"}


@dataclass(frozen=True)
class Plan:
    """Several countermeasures together, in the order given: their names, such as `grayscale` and `jpeg-10`, and what they do."""

    names: tuple[str, ...]
    parts: tuple[Countermeasure, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The names without their numbers, which are strengths, shares or counts."""
        return tuple(numbered[1] if (numbered := NUMBER.fullmatch(name)) else name for name in self.names)

    @property
    def on_images(self) -> list[Countermeasure]:
        """The countermeasures that change the images before training."""
        return [part for part in self.parts if part.stored or part.fitted or part.searched]

    @property
    def known(self) -> Countermeasure | None:
        """The countermeasure for which some images are set aside, if there is one."""
        return next((part for part in self.parts if part.known_percent or part.known_pairs), None)

    @property
    def initial(self) -> bool:
        """True if the network is one that was trained on other images before."""
        return any(part.initial for part in self.parts)

    @property
    def frozen(self) -> bool:
        """True if only the linear head is trained."""
        return any(part.frozen for part in self.parts)

    @property
    def first(self) -> Callable[[Network, TrainConfig], FirstStage] | None:
        """The training that comes first, if there is one."""
        return next((part.first for part in self.parts if part.first), None)

    @property
    def clean_percent(self) -> int:
        """Share of the protected images that are taken in their clean form."""
        return sum(part.clean_percent for part in self.parts)

    def clean_pictures(self, protected: int) -> int:
        """Return how many of the protected images an adversary has in their clean form, to train on or to learn a restoration from."""
        return sum(part.known_pairs + round(protected * (part.clean_percent + part.known_percent) / 100) for part in self.parts)

    @property
    def clean_only(self) -> bool:
        """True if the adversary trains on that share alone."""
        return any(part.clean_only for part in self.parts)

    @property
    def control(self) -> str:
        """The countermeasure that trains on the clean images of a dilution alone."""
        shares = [f"{CLEAN_ONLY}-{part.clean_percent}" if part.clean_percent else "" for part in self.parts]
        return "+".join(share or name for share, name in zip(shares, self.names, strict=True))

    def trained_as(self, data: Data) -> tuple[str, Data]:
        """Return the countermeasure and the kind of images of the training with the same result, so that it is done only once.

        Clean images cannot be diluted. Where clean images alone are trained on, the change to the others does not matter.
        """
        diluted = data == "clean" and not self.clean_only
        names = [name for name, part in zip(self.names, self.parts, strict=True) if not (diluted and part.clean_percent)]
        return "+".join(names) or "none", "clean" if self.clean_only else data

    def crafted_for(self, views: Collection[str]) -> bool:
        """Return whether a release that was crafted through these views was crafted for each of them; nothing is crafted for `none`."""
        return self.names != ("none",) and all(VIEW_OF.get(name, name) in views for name in self.names)

    @property
    def knowledge(self) -> str:
        """Their needs besides the release, in words; empty for nothing."""
        return " and ".join([OTHERS] * self.initial + [part.knowledge for part in self.parts if part.knowledge])

    @property
    def revision(self) -> int:
        """Sum of the revisions, which changes with any of them."""
        return sum(part.revision for part in self.parts)

    @property
    def cost(self) -> float:
        """Cost of a training epoch, in ordinary ones."""
        return prod(part.cost for part in self.parts)

    def training(self, config: Config) -> Config:
        """Return the settings of a training as the countermeasures change them."""
        changed: TrainConfig = config
        for part in self.parts:
            changed = part.trained(changed) if part.trained else changed
        return changed  # type: ignore[return-value]  # what replaces fields keeps the type

    def change(self, num_classes: int) -> Change | None:
        """Return the change to training batches of K classes; None if they stay as they are."""
        parts = [part for part in self.parts if part.on_batches]
        return partial(_change, parts, num_classes) if parts else None


def _change(
    parts: list[Countermeasure], num_classes: int, network: AtRest, levels: Tensor, labels: Tensor, generator: Generator
) -> tuple[Tensor, Tensor]:
    targets = one_hot(labels, num_classes).float()
    for part in parts:
        levels, targets = part.on_batch(network, levels, targets, generator)
    return levels, targets


@cache
def plan(name: str) -> Plan:
    """Return the countermeasures of a name such as `grayscale+jpeg-10`, in that order; no other place takes such a name apart.

    Raises:
        ValueError: one is unknown, or they cannot be combined.
    """
    names = tuple(name.split("+"))
    parts = tuple(map(_named, names))
    reason = ""
    if "none" in names and len(names) > 1:
        reason = "none is nothing"
    elif len(set(names)) < len(names):
        reason = "one is named twice"
    elif sum(part.clean_images for part in parts) > 1:
        reason = "an adversary has one share of clean images"
    elif sum(part.hardened is not None for part in parts) > 1:
        reason = "only one can look for the hardest images"
    elif sum(part.initial or part.first is not None for part in parts) > 1:
        reason = "only one can say what the network begins with"
    elif any(part.frozen for part in parts) and any(part.on_batches for part in parts):
        reason = "a frozen network sees each image once, so that no batch is left to change"
    if reason:
        raise ValueError(f"countermeasure {name!r} cannot be: {reason}; known are {', '.join(COUNTERMEASURES)}")
    return Plan(names, parts)


def stored_as(name: str) -> tuple[Countermeasure, ...]:
    """Return the changes that a form makes to pictures when they are stored in it: `jpeg-90`, `resize-50+webp-75`; nothing of `none`.

    Raises:
        ValueError: one is unknown, or is nothing that happens to a stored picture by itself.
    """
    parts = plan(name).parts if name != "none" else ()
    if not all(part.stored for part in parts):
        forms = [known for known, each in COUNTERMEASURES.items() if each.stored]
        raise ValueError(f"{name!r} is no form to store pictures in: expected {', '.join(forms)}, or several of them joined by +")
    return parts


def _named(name: str) -> Countermeasure:
    if name in COUNTERMEASURES:
        return COUNTERMEASURES[name]
    numbered = NUMBER.fullmatch(name)
    if numbered is None or numbered[1] not in NUMBERED or int(numbered[2]) > MOST.get(numbered[1], 99):
        others = [kind for kind in NUMBERED if kind not in (*SHARES, *MOST)]
        raise ValueError(
            f"unknown countermeasure {name!r}; known are {', '.join(COUNTERMEASURES)}, {' and '.join(SHARES)} by any other percentage "
            f"from 1 to 99, {', '.join(others)} by any other number in that range, bridge by any up to {MOST['bridge']}, and several of "
            "them joined by +"
        )
    return NUMBERED[numbered[1]](int(numbered[2]))
