"""Settings of the protection; they need no torch.

Legend: C channels, H W pixels, N checkpoints of each surrogate network, M inner steps, T outer steps, m members a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from sep.budget import Budget
from sep.choices import Channels, Kernels, Precision, Targets
from sep.methods.registry import METHODS, Method, MethodSpec

OPTIONS = ("members_per_step", "momentum", "normalised", "channels", "patterns")  # settings that only some methods have
BINDING: tuple[Targets, ...] = ("shift", "random-class")  # targets that noise can be bound to
USUAL = ("checkpoints", *OPTIONS)  # settings whose values are the method's where nobody gives one


@dataclass(frozen=True, kw_only=True)
class CraftConfig:
    """Settings of a protection."""

    method: Method = "sep-fa"
    """name of the method, see `sep.methods.registry`"""
    eps_levels: int = 8
    """L-infinity budget, in grey levels of 255; linear-separable, autoregressive (both L2) and one-pixel have their papers' own"""
    steps: int = 30
    """outer steps T, one grey level each; of error-min and bait, in each round"""
    checkpoints: int | None = None
    """ensemble size N, equally spaced over the epochs of each surrogate network; if not given, the paper's 30, or 15 for sep-fa-vr"""
    inner_steps: int | None = None
    """inner steps M of sep-fa-vr; as many as the ensemble has members if not given"""
    members_per_step: int | None = None
    """members m drawn for each step of sep-drawn and sep-fa-drawn, without replacement until all have had their turn; 1 if not given"""
    momentum: float | None = None
    """share of the last step's direction that is added to the gradient, in sep, sep-fa, tap, the drawn methods and error-minimising noise;
    if not given, 0.9 in the drawn methods, error-min-class-momentum and error-min-class-grey, and 0 in the papers'"""
    normalised: bool | None = None
    """divide each gradient, and with momentum the sum of several members', by its mean magnitude in the image, in the same methods; if not
    given, True in the drawn methods and error-min-class-grey, and False in the others"""
    channels: Channels | None = None
    """channels of error-minimising noise; colour: each channel has its own noise; grey, the default of error-min-class-grey: one for red,
    green and blue, because JPEG and grayscale remove colour"""
    patterns: int | None = None
    """patterns per class where the noise is of a class, chosen for each image by a hash of its key and the seed, against averaging a
    class; 1 if not given"""
    noise_rounds: int | None = None
    """rounds of training a network and moving error-minimising noise; if not given, 30 in bait, bait-class and error-min-class-grey,
    100 in error-min-class-momentum, else until the training error is 1 percent, at most 30"""
    targets: Targets = "shift"
    """shift: class y goes to y + K/2, the paper's; random-class: a random permutation of the classes; per-sample: each image has its own
    wrong class; untargeted: away from the true class; bait and bait-class take the first two"""
    precision: Precision = "auto"
    """arithmetic of the gradients; auto: float32 on a CPU; bf16 on a GPU that has it, else tf32"""
    kernels: Kernels = "fused"
    """plain: networks as trained; fused: batch-norm folded, channels last, and on a CPU wide convolutions with fewer multiplications;
    compiled: batch-norm folded, channels last, through torch.compile; auto: fused or compiled on a GPU, whichever a measurement at the
    beginning of a release finds faster, fused on a CPU"""

    def __post_init__(self) -> None:
        """Refuse settings that no image can be protected with.

        Raises:
            ValueError: a number is out of range.
        """
        if not 1 <= self.eps_levels <= 255:
            raise ValueError(f"eps_levels must be 1 to 255 grey levels, got {self.eps_levels}")
        for name in ("steps", "checkpoints", "inner_steps", "members_per_step", "patterns", "noise_rounds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.momentum is not None and not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be from 0 up to, not including, 1; got {self.momentum}")
        if self.kind.targets and self.kind.noise_rounds and self.targets not in BINDING:
            known = " or ".join(BINDING)
            raise ValueError(f"targets of {self.method} must be {known}, which give a class one wrong class; got {self.targets}")
        for name in (*OPTIONS, "noise_rounds"):
            if getattr(self, name) is not None and not _takes(self.kind, name):
                others = ", ".join(method for method, kind in METHODS.items() if _takes(kind, name))
                raise ValueError(f"{name} is not a setting of {self.method}, but of {others}: leave it out, or take one of these")

    @property
    def kind(self) -> MethodSpec:
        """Needs and limits of the method."""
        return METHODS[self.method]

    @property
    def per_network(self) -> int:
        """Number of checkpoints that the method reads of each surrogate network: N, 1 for tap, 0 without an ensemble."""
        count = self.kind.checkpoints
        return self.asked_checkpoints if count is None else count

    @property
    def asked_checkpoints(self) -> int:
        """N as it is recorded, even if the method reads one checkpoint or none: the setting, or else the usual number."""
        return self.kind.usual if self.checkpoints is None else self.checkpoints

    def resolved(self) -> Self:
        """Return the settings that apply, with the method's usual values for settings not given."""
        usual: dict[str, Any] = {name: getattr(self.kind, name) for name in OPTIONS if getattr(self, name) is None}
        return replace(self, checkpoints=self.asked_checkpoints, **usual)

    @property
    def aligns_features(self) -> bool:
        """True if the loss is feature alignment, which needs class means."""
        return self.kind.preparation == "class-means"

    @property
    def noise_steps(self) -> int:
        """Steps over the noise in each round of training against it: T for the noise of an image, one a batch for that of a class."""
        return self.steps if self.kind.preparation == "own-noise" else 1

    @property
    def rounds(self) -> int:
        """Rounds of training against the noise, at most; 0 for methods without."""
        return self.noise_rounds or self.kind.noise_rounds

    @property
    def idle(self) -> tuple[str, ...]:
        """Settings of every method that this one does not read, or of which it reads only one value."""
        reads = {"steps": self.kind.surrogate or self.kind.preparation == "own-noise", "checkpoints": self.kind.checkpoints is None}
        return tuple(name for name, read in reads.items() if not read)

    def budget(self, shape: Sequence[int]) -> Budget:
        """Return the budget of an image `(C, H, W)`."""
        return self.kind.budget(self.eps_levels, shape)

    def gradients_per_image(self, members: int, noise_rounds: int | None = None) -> int:
        """Return the number of forward and backward passes per image.

        An ensemble of N takes T*N, or T*m with m members drawn for each step, or T*(N+M-1) with inner steps, the first of which is
        where the members' gradients are known. Training against the noise takes `noise_steps` in each round.

        Args:
            members: size of the whole ensemble.
            noise_rounds: rounds of training against the noise; the most that the method allows if not given.
        """
        inner = (self.inner_steps or members) - 1 if self.kind.inner_steps else 0
        rounds = self.rounds if noise_rounds is None else noise_rounds
        return self.steps * ((self.resolved().members_per_step or members) + inner) + self.noise_steps * rounds


def _takes(kind: MethodSpec, name: str) -> bool:
    """Return whether a method has a setting of `OPTIONS`, or rounds."""
    return kind.noise_rounds > 0 if name == "noise_rounds" else getattr(kind, name) is not None
