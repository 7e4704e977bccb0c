"""Requests: the images to protect, and everything that may decide how.

Legend: B images, C channels, H W pixels, K protected classes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sep.budget import Budget, check_budget
from sep.craft_config import CraftConfig
from sep.ensemble import Member
from sep.execution import MicroBatch
from sep.pictures import Images, stacks
from sep.views.mix import Turn
from sep.views.registry import PLAIN, OwnSize


@dataclass(frozen=True)
class Request:
    """Images to protect. No other image of the release decides how, except through `prepared`.

    Attributes:
        images: clean images, `(B, C, H, W)` uint8 on the CPU, or pictures of their own size.
        classes: position of each image's class among the protected ones, `(B,)` int64, 0 to K-1.
        num_classes: K.
        seeds: one for each image, for draws of its own.
        seed: one for the whole release, for draws that a class has in common.
        budget: the most that each image may change.
        prepared: the result of the method's preparation over the whole training set, for these images or for all classes; None if the
            method needs none, or if its preparation is the class means of the members.
        config: the settings: method, steps, kind of target, precision, kernels.
        members: the ensemble, on one device, with class means if the method aligns features; empty if it follows none. It has a member
            for each checkpoint and view, the views of a checkpoint side by side. A member may be loaded when it is drawn.
        views: the mix of views that members look through.
        targets: class each image is drawn towards, or, untargeted, away from, `(B,)`; only with an ensemble.
        generator: on the CPU; source of draws that images of one shard have in common.
        view_draws: on the CPU; source of the draws of views, which all images of the release have in common.
        batch: number of images whose gradients are taken at once; only with an ensemble.
        input_size: side in pixels that networks see of pictures of their own size.
    """

    images: Images
    classes: Tensor
    num_classes: int
    seeds: Sequence[int]
    seed: int
    budget: Budget
    prepared: Tensor | None = None
    config: CraftConfig = field(default_factory=CraftConfig)
    members: Sequence[Member] = ()
    views: Sequence[str] = PLAIN
    targets: Tensor | None = None
    generator: torch.Generator = field(default_factory=torch.Generator)
    view_draws: torch.Generator = field(default_factory=torch.Generator)
    batch: MicroBatch = field(default_factory=lambda: MicroBatch(sys.maxsize))
    input_size: int | None = None

    @property
    def checkpoints(self) -> int:
        """Number of checkpoints in the ensemble."""
        return len(self.members) // len(set(self.views))

    def looked(self, step: int, turns: Sequence[Turn], part: slice) -> Sequence[Turn]:
        """Return the turns of a step for some images: pictures of their own size have draws of their own in each turn."""
        if isinstance(self.images, Tensor):
            return turns
        assert self.input_size is not None
        sizes, seeds = self.images.sizes[part], self.seeds[part]
        each = {k: OwnSize(sizes, self.input_size, [f"{seed} {step} {k}" for seed in seeds]) for k, _ in turns}
        return [(k, replace(look, own_size=each[k])) for k, look in turns]

    def own(self, *shape: int) -> Tensor:
        """Return normal draws for each image, `(B, *shape)` float64; they depend on the image's seed and on no other image."""
        drawn = [torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in self.seeds]
        return torch.stack(drawn)

    def common(self) -> torch.Generator:
        """Return a fresh generator, the same for every image of the release."""
        return torch.Generator().manual_seed(self.seed)


def protect(request: Request) -> Images:
    """Protect images by the method of the request's settings, its usual ones where nobody gave one.

    Returns:
        Protected images, `(B, C, H, W)` uint8 on the CPU, or pictures of their own size, within the budget.

    Raises:
        ValueError: gradients of the ensemble are no numbers, or the method exceeded its budget.
    """
    kind, request = request.config.kind, replace(request, config=request.config.resolved())
    assert isinstance(request.images, Tensor) or kind.own_size
    assert kind.surrogate == bool(request.members), f"{request.config.method} and an ensemble of {len(request.members)}"
    protected = kind.perturb(request)
    for after, before in zip(stacks(protected), stacks(request.images.cpu()), strict=True):
        check_budget(after, before, request.budget)
    return protected


def added(images: Tensor, change: Tensor) -> Tensor:
    """Return images `(B, C, H, W)` uint8 with a change in whole levels added and clipped to 0..255, which only makes it smaller."""
    assert images.dtype == torch.uint8
    return (images.double() + change).clamp(0, 255).to(torch.uint8)
