"""Crafting with an ensemble: the three algorithms, on the 8-bit grid from the first step to the last (method, section 4).

Legend: B images, C channels, H W pixels, K classes, N checkpoints, M inner steps, T outer steps.
Every iterate is whole grey levels, so what is stored is exactly what was optimised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sep.budget import Budget, project
from sep.ensemble import Member
from sep.execution import Kernels, MicroBatch, Precision, arithmetic, to_device
from sep.methods.registry import METHODS, Method, MethodSpec
from sep.objective import Targets, feature_alignment, target_cross_entropy

__all__ = ["CraftConfig", "Method", "craft", "craft_in_parts", "gradient"]


@dataclass(frozen=True, kw_only=True)
class CraftConfig:
    """How the perturbation is made."""

    method: Method = "sep-fa"
    """sep: target cross-entropy; sep-fa: feature alignment; sep-fa-vr: with variance-reduced gradients (SVRE);
    tap: sep with the last checkpoint alone; noise: random signs, the control; error-min, error-min-class: noise of each image or class that
    minimises the loss of a network trained against it; linear-separable, autoregressive: random patterns of each class; one-pixel: one
    pixel of each image set to a colour of its class"""
    eps_levels: int = 8
    """L-infinity budget, in grey levels of 255; linear-separable, autoregressive (both L2) and one-pixel have their papers' own"""
    steps: int = 30
    """outer steps T, one grey level each; of error-min, in each round"""
    checkpoints: int | None = None
    """ensemble size N, equally spaced over the epochs of each surrogate network; the paper's if not given: 30, and 15 of sep-fa-vr"""
    inner_steps: int | None = None
    """inner steps M of sep-fa-vr; as many as the ensemble has members if not given"""
    targets: Targets = "shift"
    """shift: class y goes to y + K/2, the paper's; random-class: a random permutation of the classes; per-sample: each image has its own
    wrong class; untargeted: away from the true class"""
    precision: Precision = "auto"
    """arithmetic of the gradients; auto: bf16 on a GPU that has it, float32 on a CPU"""
    kernels: Kernels = "fused"
    """plain: networks as trained; fused: batch-norm folded, channels last, and on a CPU wide convolutions with fewer multiplications;
    compiled: batch-norm folded, channels last, through torch.compile"""

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
    def per_network(self) -> int:
        """How many checkpoints of each surrogate network the method reads: N, one for tap, none for those without an ensemble."""
        count = self.kind.checkpoints
        return self.asked_checkpoints if count is None else count

    @property
    def asked_checkpoints(self) -> int:
        """N as it is recorded, also where the method reads none or one: what was asked for, or else what is usual."""
        return self.kind.usual if self.checkpoints is None else self.checkpoints

    @property
    def kind(self) -> MethodSpec:
        """What the method needs."""
        return METHODS[self.method]

    @property
    def aligns_features(self) -> bool:
        """Whether the loss is feature alignment, which needs class means."""
        return self.kind.preparation == "class-means"

    @property
    def noise_steps(self) -> int:
        """Steps over the noise of an image in each round of training against it; that of a class takes one with every batch."""
        return self.steps if self.kind.preparation == "own-noise" else 1

    def budget(self, shape: Sequence[int]) -> Budget:
        """What may be spent on an image `(C, H, W)`."""
        return self.kind.budget(self.eps_levels, shape)

    def gradients_per_image(self, members: int, noise_rounds: int | None = None) -> int:
        """Forward and backward passes per image.

        T*N with an ensemble of N, or T*(N+M) with variance reduction; T in each round of training against the noise, of which there are
        `noise_rounds`, or, where that is not known, as many as there may be.
        """
        inner = (self.inner_steps or members) if self.method == "sep-fa-vr" else 0
        rounds = self.kind.noise_rounds if noise_rounds is None else noise_rounds
        return self.steps * (members + inner) + self.noise_steps * rounds


def gradient(member: Member, x: Tensor, targets: Tensor, *, ascend: bool = False) -> Tensor:
    """`grad L_i(x)` of one member with respect to the pixels, `(B, C, H, W)`; feature alignment if it has class means.

    With `ascend` its negative, so that whoever descends on it moves away from the class instead of towards it.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        if member.means is None:
            loss = target_cross_entropy(member.network(x)[1], targets)
        else:
            loss = feature_alignment(member.network.features(x), member.means[targets])
        (grad,) = torch.autograd.grad(-loss if ascend else loss, x)
    return grad


def signs(total: Tensor) -> Tensor:
    """Signs of a gradient, and NaN where it is none: torch gives NaN the sign 0, which would pass for a pixel that needs no change."""
    return torch.where(total.isnan(), total, total.sign())


def sep(members: Sequence[Member], clean: Tensor, targets: Tensor, config: CraftConfig) -> Tensor:
    """SEP, SEP-FA and TAP: descend on the mean gradient of the ensemble."""
    x, ascend = clean, config.targets == "untargeted"
    for _ in range(config.steps):
        total = torch.zeros_like(x)
        for member in members:
            total += gradient(member, x, targets, ascend=ascend)
        x = project(x - signs(total), clean, config.eps_levels)
    return x


def sep_variance_reduced(
    members: Sequence[Member], clean: Tensor, targets: Tensor, config: CraftConfig, draws: Sequence[Sequence[int]]
) -> Tensor:
    """SEP-FA-VR: SVRE (Xiong et al. 2022) over the self-ensemble; a member's means always go with its own network.

    `draws` names the members of the inner steps, `(T, M)`.
    """
    x, ascend = clean, config.targets == "untargeted"
    for drawn in draws:
        each = [gradient(member, x, targets, ascend=ascend) for member in members]
        mean = torch.stack(each).mean(0)
        v, total = x, torch.zeros_like(x)
        for k in drawn:
            total += gradient(members[k], v, targets, ascend=ascend) - (each[k] - mean)
            v = project(v - total.sign(), clean, config.eps_levels)
        x = project(x - signs(total), clean, config.eps_levels)  # which has every NaN of the inner steps
    return x


def craft_in_parts(
    members: Sequence[Member], images: Tensor, targets: Tensor, config: CraftConfig, generator: torch.Generator, batch: MicroBatch
) -> Iterator[Tensor]:
    """Protect images in micro-batches, each handed out as soon as it is done.

    Everything random is drawn before the first of them, so that their size decides no draw; it may decide a rounding.

    Args:
        members: the ensemble, all on one device; with class means for the methods that align features.
        images: clean images, `(B, C, H, W)` uint8, on any device.
        targets: class each image is drawn towards, or, untargeted, away from, `(B,)`.
        config: method, budget, steps.
        generator: on the CPU; source of the draws of `sep-fa-vr` and `noise`.
        batch: size of the micro-batches; shrinks where memory runs out.

    Yields:
        Protected images in order, `(b, C, H, W)` uint8 on the CPU, within the budget.

    Raises:
        ValueError: gradients of the ensemble are no numbers; the images would be released as they are.
    """
    assert config.kind.perturb is None, f"{config.method} follows no ensemble"
    assert (config.method == "noise") == (not members)
    assert images.dtype == torch.uint8
    assert all((member.means is not None) == config.aligns_features for member in members)
    if config.method == "noise":
        signs = torch.randint(2, images.shape, generator=generator, dtype=torch.int8) * 2 - 1
        # The control: every value moves by the whole budget, up or down at random.
        levels = images.cpu().float()
        yield project(levels + config.eps_levels * signs, levels, config.eps_levels).to(torch.uint8)
        return
    like = members[0].network.mean
    inner = (config.steps, config.inner_steps or len(members))
    draws = torch.randint(len(members), inner, generator=generator).tolist() if config.method == "sep-fa-vr" else []

    def run(part: slice) -> Tensor:
        clean, wanted = to_device(images[part], like, config.kernels), targets[part].to(like.device)
        with arithmetic(like.device, config.precision):
            if config.method == "sep-fa-vr":
                x = sep_variance_reduced(members, clean, wanted, config, draws)
            else:
                x = sep(members, clean, wanted, config)
        if bool(x.isnan().any()):
            raise ValueError("the ensemble's gradients are not finite numbers: a checkpoint is of a training that diverged")
        # Whole levels in, whole levels out: the conversion is exact, and rounding guards against a future step that is not.
        return x.round().to(torch.uint8).cpu().contiguous()

    yield from batch.run(run, len(images))


def craft(
    members: Sequence[Member],
    images: Tensor,
    targets: Tensor,
    config: CraftConfig,
    generator: torch.Generator,
    batch_size: int | None = None,
) -> Tensor:
    """Protect images: see `craft_in_parts`, whose parts these are in one, `(B, C, H, W)` uint8 on the CPU.

    `batch_size` is how many gradients are taken at once; what fits memory if not given.
    """
    device = members[0].network.mean.device if members else torch.device("cpu")
    batch = MicroBatch(batch_size) if batch_size else MicroBatch.fitting(images.shape[1:], device)
    return torch.cat(list(craft_in_parts(members, images, targets, config, generator, batch)))
