"""Crafting with an ensemble: gradients of its members, on the 8-bit grid from the first step to the last (method, section 4).

Legend: B images, C channels, H W pixels.
Every iterate is whole grey levels, so what is stored is exactly what was optimised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sep.craft_config import CraftConfig
from sep.ensemble import Member
from sep.execution import MicroBatch, arithmetic, to_device
from sep.methods.registry import Method
from sep.methods.request import Request, protect
from sep.objective import feature_alignment, target_cross_entropy

__all__ = ["CraftConfig", "Method", "craft", "descend", "gradient", "signs"]


def gradient(member: Member, x: Tensor, targets: Tensor, *, ascend: bool = False) -> Tensor:
    """Return `grad L_i(x)` of one member with respect to the pixels, `(B, C, H, W)`; of feature alignment if it has class means.

    With `ascend`, return its negative: a descent along it moves away from the class instead of towards it.
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
    """Return the signs of a gradient, NaN where it is NaN: torch's sign of NaN is 0, which would pass for a pixel that is to stay."""
    return torch.where(total.isnan(), total, total.sign())


def descend(request: Request, path: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Protect images in micro-batches along a path of gradients.

    Args:
        request: with an ensemble and targets.
        path: from clean images, whole levels as floats `(b, C, H, W)` on the ensemble's device, and their targets `(b,)` to protected
            images of the same kind. It is called again for images whose memory ran out, so it draws nothing itself.

    Returns:
        Protected images, `(B, C, H, W)` uint8 on the CPU.

    Raises:
        ValueError: gradients of the ensemble are no numbers; the images would be released unprotected.
    """
    config, like, targets = request.config, request.members[0].network.mean, request.targets
    assert targets is not None

    def run(part: slice) -> Tensor:
        clean, wanted = to_device(request.images[part], like, config.kernels), targets[part].to(like.device)
        with arithmetic(like.device, config.precision):
            x = path(clean, wanted)
        if bool(x.isnan().any()):
            raise ValueError("the ensemble's gradients are not finite numbers: a checkpoint is of a training that diverged")
        # Whole levels in, whole levels out: the conversion is exact, and rounding guards against a future step that is not.
        return x.round().to(torch.uint8).cpu().contiguous()

    return torch.cat(list(request.batch.run(run, len(request.images))))


def craft(
    members: Sequence[Member],
    images: Tensor,
    targets: Tensor,
    config: CraftConfig,
    generator: torch.Generator,
    batch_size: int | None = None,
) -> Tensor:
    """Protect images with an ensemble at hand, by any method that needs no other preparation than class means.

    Args:
        members: the ensemble, all on one device; with class means for the methods that align features.
        images: clean images, `(B, C, H, W)` uint8, on any device.
        targets: class each image is drawn towards, or, untargeted, away from, `(B,)`; its own class if the method has no targets.
        config: method, budget, steps.
        generator: on the CPU; source of the draws that the images have in common. Those of single images derive from its seed.
        batch_size: number of images whose gradients are taken at once; what fits memory if not given.

    Returns:
        Protected images, `(B, C, H, W)` uint8 on the CPU, within the budget.

    Raises:
        ValueError: gradients of the ensemble are no numbers.
    """
    device, seed = members[0].network.mean.device if members else torch.device("cpu"), generator.initial_seed()
    request = Request(
        images=images,
        classes=targets,
        num_classes=int(targets.max()) + 1,
        seeds=range(seed, seed + len(images)),
        seed=seed,
        budget=config.budget(images.shape[1:]),
        config=config,
        members=members,
        targets=targets,
        generator=generator,
        batch=MicroBatch(batch_size) if batch_size else MicroBatch.fitting(images.shape[1:], device),
    )
    return protect(request)
