"""The methods by name: what each is made from, what it may spend on an image, and how it perturbs. A new one is a function and a line here.

Legend: C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from sep.budget import Budget, largest_change
from sep.methods import autoregressive, linear_separable, one_pixel
from sep.methods.error_minimising import MOST_ROUNDS
from sep.methods.request import Request, class_noise, own_noise

Method = Literal[
    "sep",
    "sep-fa",
    "sep-fa-vr",
    "tap",
    "noise",
    "error-min",
    "error-min-class",
    "linear-separable",
    "autoregressive",
    "one-pixel",
]
Preparation = Literal["class-means", "own-noise", "class-noise", "pixels"]


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """One method.

    Attributes:
        surrogate: whether it goes with a trained surrogate: it reads its checkpoints, or, of the control, is compared by them.
        checkpoints: how many of each surrogate network it reads; None: as many as are asked for.
        usual: how many are asked for where nobody gives a number: the paper's (method, section 2).
        targets: whether an image is drawn towards a wrong class.
        preparation: what is to be found over the whole training set before the first shard; None: nothing.
        perturb: how it protects images, if not by gradients of an ensemble.
        budget: what it may spend on an image, by the L-infinity radius in levels and the shape `(C, H, W)`.
        noise_rounds: of training a network against the noise, at most; 0: it trains none.
        grows: whether images that come later can be protected alike.
    """

    surrogate: bool = False
    checkpoints: int | None = 0
    usual: int = 15
    targets: bool = False
    preparation: Preparation | None = None
    perturb: Callable[[Request], Tensor] | None = None
    budget: Callable[[int, Sequence[int]], Budget] = largest_change
    noise_rounds: int = 0
    grows: bool = True


METHODS: dict[Method, MethodSpec] = {
    "sep": MethodSpec(surrogate=True, checkpoints=None, usual=30, targets=True),
    "sep-fa": MethodSpec(surrogate=True, checkpoints=None, usual=30, targets=True, preparation="class-means"),
    "sep-fa-vr": MethodSpec(surrogate=True, checkpoints=None, usual=15, targets=True, preparation="class-means"),
    "tap": MethodSpec(surrogate=True, checkpoints=1, targets=True),
    "noise": MethodSpec(surrogate=True),
    "error-min": MethodSpec(preparation="own-noise", perturb=own_noise, noise_rounds=MOST_ROUNDS, grows=False),
    "error-min-class": MethodSpec(preparation="class-noise", perturb=class_noise, noise_rounds=MOST_ROUNDS),
    "linear-separable": MethodSpec(perturb=linear_separable.linear_separable, budget=linear_separable.squared_levels),
    "autoregressive": MethodSpec(perturb=autoregressive.autoregressive, budget=autoregressive.squared_levels),
    "one-pixel": MethodSpec(preparation="pixels", perturb=one_pixel.one_pixel, budget=one_pixel.single_pixel),
}
assert tuple(METHODS) == get_args(Method)
