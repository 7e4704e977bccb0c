"""Crafting: the three algorithms, on the 8-bit grid from the first step to the last (method, section 4).

Legend: B images, C channels, H W pixels, K classes, N checkpoints, M inner steps, T outer steps.
Every iterate is whole grey levels, so what is stored is exactly what was optimised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sep.budget import project
from sep.ensemble import Member
from sep.objective import feature_alignment, target_cross_entropy

Method = Literal["sep", "sep-fa", "sep-fa-vr", "tap", "noise"]


@dataclass(frozen=True, kw_only=True)
class CraftConfig:
    """How the perturbation is made."""

    method: Method = "sep-fa"
    """sep: target cross-entropy; sep-fa: feature alignment; sep-fa-vr: with variance-reduced gradients (SVRE);
    tap: sep with the last checkpoint alone; noise: random signs, the control"""
    eps_levels: int = 8
    """L-infinity budget, in grey levels of 255"""
    steps: int = 30
    """outer steps T, one grey level each"""
    checkpoints: int = 30
    """ensemble size N, equally spaced over the surrogate's epochs"""
    inner_steps: int | None = None
    """inner steps M of sep-fa-vr; N if not given"""

    def __post_init__(self) -> None:
        """Refuse what cannot be crafted.

        Raises:
            ValueError: a number is out of range.
        """
        if not 1 <= self.eps_levels <= 255:
            raise ValueError(f"eps_levels must be 1 to 255 grey levels, got {self.eps_levels}")
        for name in ("steps", "checkpoints", "inner_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    @property
    def members(self) -> int:
        """How many checkpoints the method reads: N, one for tap, none for noise."""
        return {"tap": 1, "noise": 0}.get(self.method, self.checkpoints)

    @property
    def aligns_features(self) -> bool:
        """Whether the loss is feature alignment, which needs class means."""
        return self.method in ("sep-fa", "sep-fa-vr")

    @property
    def gradients_per_image(self) -> int:
        """Forward and backward passes per image: T*N, or T*(N+M) with variance reduction."""
        inner = (self.inner_steps or self.checkpoints) if self.method == "sep-fa-vr" else 0
        return self.steps * (self.members + inner)


def gradient(member: Member, x: Tensor, targets: Tensor) -> Tensor:
    """`grad L_i(x)` of one member with respect to the pixels, `(B, C, H, W)`; feature alignment if it has class means."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        if member.means is None:
            loss = target_cross_entropy(member.network(x)[1], targets)
        else:
            loss = feature_alignment(member.network.features(x), member.means[targets])
        (grad,) = torch.autograd.grad(loss, x)
    return grad


def sep(members: Sequence[Member], clean: Tensor, targets: Tensor, config: CraftConfig) -> Tensor:
    """SEP, SEP-FA and TAP: descend on the mean gradient of the ensemble."""
    x = clean
    for _ in range(config.steps):
        total = torch.zeros_like(x)
        for member in members:
            total += gradient(member, x, targets)
        x = project(x - total.sign(), clean, config.eps_levels)
    return x


def sep_variance_reduced(
    members: Sequence[Member], clean: Tensor, targets: Tensor, config: CraftConfig, generator: torch.Generator
) -> Tensor:
    """SEP-FA-VR: SVRE (Xiong et al. 2022) over the self-ensemble; a member's means always go with its own network."""
    x = clean
    for _ in range(config.steps):
        each = [gradient(member, x, targets) for member in members]
        mean = torch.stack(each).mean(0)
        v, total = x, torch.zeros_like(x)
        for k in torch.randint(len(members), (config.inner_steps or len(members),), generator=generator).tolist():
            total += gradient(members[k], v, targets) - (each[k] - mean)
            v = project(v - total.sign(), clean, config.eps_levels)
        x = project(x - total.sign(), clean, config.eps_levels)
    return x


def random_signs(clean: Tensor, config: CraftConfig, generator: torch.Generator) -> Tensor:
    """The control: every value moves by the whole budget, up or down at random."""
    signs = torch.randint(2, clean.shape, generator=generator).to(clean) * 2 - 1
    return project(clean + config.eps_levels * signs, clean, config.eps_levels)


def craft(members: Sequence[Member], images: Tensor, targets: Tensor, config: CraftConfig, generator: torch.Generator) -> Tensor:
    """Protect one batch.

    Args:
        members: the ensemble, all on one device; with class means for the methods that align features.
        images: clean images, `(B, C, H, W)` uint8, on any device.
        targets: wrong class of each image, `(B,)`.
        config: method, budget, steps.
        generator: on the CPU; source of the draws of `sep-fa-vr` and `noise`.

    Returns:
        Protected images, `(B, C, H, W)` uint8 on the CPU, within the budget.
    """
    assert len(members) == config.members
    assert images.dtype == torch.uint8
    assert all((member.means is not None) == config.aligns_features for member in members)
    like = members[0].network.mean if members else torch.empty(0)
    clean = images.to(like.device, like.dtype, memory_format=torch.channels_last)
    targets = targets.to(like.device)
    if config.method == "noise":
        x = random_signs(clean, config, generator)
    elif config.method == "sep-fa-vr":
        x = sep_variance_reduced(members, clean, targets, config, generator)
    else:
        x = sep(members, clean, targets, config)
    # Whole levels in, whole levels out: the conversion is exact, and rounding guards against a future step that is not.
    return x.round().to(torch.uint8).cpu().contiguous()
