"""The methods by name: the function that protects images, what it needs, and what it may spend on an image.

A new method is a function in a file of its own and an entry here. The functions are imported when they are called, so that this table,
and with it the command line, needs no torch.

Legend: B images, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

from sep.budget import Budget, largest_change
from sep.choices import Channels
from sep.deferred import Deferred
from sep.views.registry import PLAIN

if TYPE_CHECKING:
    from sep.methods.request import Request
    from sep.pictures import Images

Method = Literal[
    "sep",
    "sep-fa",
    "sep-fa-vr",
    "sep-drawn",
    "sep-fa-drawn",
    "tap",
    "noise",
    "error-min",
    "error-min-class",
    "error-min-class-momentum",
    "error-min-class-grey",
    "aue",
    "bait",
    "bait-class",
    "linear-separable",
    "autoregressive",
    "one-pixel",
]
Preparation = Literal["class-means", "own-noise", "class-noise", "pixels"]
ENOUGH = 1.0  # percent: lambda of error-minimising noise, the training error at which it is done
MOST_ROUNDS = 30  # of training a network and moving the noise, where that error is not reached
FOR_PHOTOGRAPHS = 100  # rounds, whatever the error: ending at it left 33.0 and 29.5 % instead of 29.8 and 23.2 (two releases)


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """One method.

    Attributes:
        description: what it does, in a few words, for the help of the command line.
        perturb: the function: a request to the protected images, in the same form, within the request's budget.
        checkpoints: number of checkpoints it reads of each surrogate network; None: as many as are asked for.
        usual: number of checkpoints where nobody asks for one: the paper's (method, section 2).
        inner_steps: whether each step of it has inner steps, along one checkpoint each.
        members_per_step: number of members drawn for each step, if not given; None: every step takes the whole ensemble.
        momentum: share of the last step's direction that is added to the gradient, if not given; None: it takes no momentum.
        normalised: whether each gradient is divided by its mean magnitude, if not given; None: it takes no such setting.
        channels: of the noise it makes, if not given; None: it takes no such setting.
        patterns: number of patterns a class, if not given; None: it has none of a class.
        targets: whether it draws an image, or binds its noise, towards a wrong class.
        preparation: what it must know of the whole training set before the first shard; None: nothing.
        budget: what it may spend on an image, by the L-infinity radius in levels and the shape `(C, H, W)`.
        noise_rounds: rounds of training a network against the noise, at most; 0: it trains none.
        enough: training error in percent at which the noise is done before that; None: it takes all its rounds.
        mix: views that its networks look through where those of the run are `none` alone.
        grows: whether it can protect images that come later in the same way.
        own_size: whether it can protect pictures of many sizes, each at its own.
        undone: what was published against it, or against the method that it is a variant of, in a sentence; empty where we know of nothing.
    """

    description: str
    perturb: Callable[[Request], Images]
    checkpoints: int | None = 0
    usual: int = 15
    inner_steps: bool = False
    members_per_step: int | None = None
    momentum: float | None = None
    normalised: bool | None = None
    channels: Channels | None = None
    patterns: int | None = None
    targets: bool = False
    preparation: Preparation | None = None
    budget: Callable[[int, Sequence[int]], Budget] = largest_change
    noise_rounds: int = 0
    enough: float | None = None
    mix: tuple[str, ...] = PLAIN
    grows: bool = True
    own_size: bool = False
    undone: str = ""

    @property
    def surrogate(self) -> bool:
        """True if it follows the gradients of a surrogate's checkpoints."""
        return self.checkpoints != 0

    @property
    def views(self) -> bool:
        """True if networks that it follows look through the views of a run."""
        return self.surrogate or self.noise_rounds > 0


_SEP_UNDONE = (
    "Published for SEP at 8/255 on CIFAR-10 (ResNet18): a victim whose trainer first recompresses the images as JPEG of quality 10 "
    "reaches 84.4 %; clean images treated alike give 85.4 % (Image Shortcut Squeezing)."
)
_SEP = MethodSpec(
    description="target cross-entropy",
    perturb=Deferred("sep.methods.self_ensemble:mean_gradient"),
    checkpoints=None,
    usual=30,
    momentum=0.0,
    normalised=False,
    targets=True,
    own_size=True,
    undone=_SEP_UNDONE,
)
_SEP_DRAWN = replace(
    _SEP,
    description="sep with the gradient of one drawn checkpoint a step, normalised and with momentum",
    members_per_step=1,
    momentum=0.9,
    normalised=True,
)
_ERROR_MIN = MethodSpec(
    description="noise of each image that minimises the loss of a network trained against it",
    perturb=Deferred("sep.methods.error_minimising:own_noise"),
    momentum=0.0,
    normalised=False,
    channels="colour",
    preparation="own-noise",
    noise_rounds=MOST_ROUNDS,
    enough=ENOUGH,
    grows=False,
)
_ERROR_MIN_CLASS = replace(
    _ERROR_MIN,
    description="the same with one noise for each class",
    perturb=Deferred("sep.methods.error_minimising:class_noise"),
    patterns=1,
    preparation="class-noise",
    grows=True,
    own_size=True,
)
METHODS: dict[Method, MethodSpec] = {
    "sep": _SEP,
    "sep-fa": replace(_SEP, description="feature alignment", preparation="class-means"),
    "sep-fa-vr": MethodSpec(
        description="feature alignment with variance-reduced gradients (SVRE)",
        perturb=Deferred("sep.methods.variance_reduced:variance_reduced"),
        checkpoints=None,
        inner_steps=True,
        targets=True,
        preparation="class-means",
        own_size=True,
        undone=_SEP_UNDONE,
    ),
    "sep-drawn": _SEP_DRAWN,
    "sep-fa-drawn": replace(_SEP_DRAWN, description="the same with feature alignment", preparation="class-means"),
    "tap": replace(
        _SEP,
        description="sep with the last checkpoint alone",
        checkpoints=1,
        usual=MethodSpec.usual,
        undone="Published for TAP at 8/255 on CIFAR-10 (ResNet18): a victim reaches 79.9 % under adversarial training (APBench).",
    ),
    "noise": MethodSpec(
        description="random signs, the control",
        perturb=Deferred("sep.methods.noise:random_signs"),
        own_size=True,
    ),
    "error-min": _ERROR_MIN,
    "error-min-class": _ERROR_MIN_CLASS,
    "error-min-class-momentum": replace(
        _ERROR_MIN_CLASS,
        description="error-min-class with momentum and 100 rounds, for photographs",
        momentum=0.9,
        noise_rounds=FOR_PHOTOGRAPHS,
        enough=None,
    ),
    "error-min-class-grey": replace(
        _ERROR_MIN_CLASS,
        description="error-min-class in grey, through JPEG and blur, which it then survives",
        momentum=0.9,
        normalised=True,
        channels="grey",
        mix=("none", "jpeg-10", "jpeg-50", "blur"),
        enough=None,
    ),
    "aue": replace(_ERROR_MIN, description="error-min under the augmentation of contrastive learning", mix=("simclr-60",)),
    "bait": replace(
        _ERROR_MIN,
        description="error-min with the noise bound to a wrong class, against pretrained victims",
        targets=True,
        enough=None,
    ),
    "bait-class": replace(_ERROR_MIN_CLASS, description="the same with one noise for each class", targets=True, enough=None),
    "linear-separable": MethodSpec(
        description="a random pattern of each class, which a linear model can tell apart",
        perturb=Deferred("sep.methods.linear_separable:linear_separable"),
        budget=Deferred("sep.methods.linear_separable:squared_levels"),
    ),
    "autoregressive": MethodSpec(
        description="a random autoregressive process of each class",
        perturb=Deferred("sep.methods.autoregressive:autoregressive"),
        budget=Deferred("sep.methods.autoregressive:squared_levels"),
    ),
    "one-pixel": MethodSpec(
        description="one pixel of each image set to a colour of its class",
        perturb=Deferred("sep.methods.one_pixel:one_pixel"),
        preparation="pixels",
        budget=Deferred("sep.methods.one_pixel:single_pixel"),
    ),
}
assert tuple(METHODS) == get_args(Method)
