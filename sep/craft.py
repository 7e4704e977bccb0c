"""Crafting with an ensemble: gradients of its members, on the 8-bit grid from the first step to the last (method, section 4).

Legend: B images, C channels, H W pixels.
Every iterate is whole grey levels, so what is stored is exactly what was optimised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from sep.budget import project
from sep.craft_config import CraftConfig
from sep.ensemble import Member
from sep.execution import MicroBatch, arithmetic, to_device
from sep.methods.registry import Method
from sep.methods.request import Request, protect
from sep.objective import feature_alignment, target_cross_entropy
from sep.pictures import Images, flat, one_size, pixels, unflat
from sep.views.mix import Turn
from sep.views.registry import PLAIN, Look, see_together

__all__ = ["CraftConfig", "Method", "craft", "descend", "gradient"]

Direction = Callable[[Sequence[Turn], Tensor, Tensor, Tensor], Tensor]
NO_DRAWS = Look()


def gradient(member: Member, x: Tensor, targets: Tensor, look: Look = NO_DRAWS, *, ascend: bool = False) -> Tensor:
    """Return `grad L_i(V(x))` of one member with respect to the pixels, `(B, C, H, W)`; of feature alignment if it has class means.

    `V` is the member's view, and the look has its draws. With `ascend`, return the negative: a descent along it moves away from the class
    instead of towards it.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(_loss(member, member.view.on_levels(x, look), targets, ascend), x)
    return grad


def summed_gradient(members: Sequence[Member], x: Tensor, targets: Tensor, turns: Sequence[Turn], *, ascend: bool = False) -> Tensor:
    """Return the sum of the gradients of several members, each by its look: see `gradient`.

    Gradients of pictures of their own size are added up as what networks see, and go back to the pictures together.
    """
    if turns[0][1].own_size is None:
        total = torch.zeros_like(x)
        for k, look in turns:
            total += gradient(members[k], x, targets, look, ascend=ascend)
        return total
    drawn = [members[k] for k, _ in turns]
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        seen = see_together(x, [(member.view, look) for member, (_, look) in zip(drawn, turns, strict=True)])
        slopes: list[Tensor] = []
        for member, each in zip(drawn, seen, strict=True):
            own = each.detach().requires_grad_()
            slopes += torch.autograd.grad(_loss(member, own, targets, ascend), own)
        (total,) = torch.autograd.grad(seen, x, slopes)
    return total


def _loss(member: Member, seen: Tensor, targets: Tensor, ascend: bool) -> Tensor:
    """Return a member's loss of what it sees; with `ascend`, the negative."""
    if member.means is None:
        loss = target_cross_entropy(member.network(seen)[1], targets)
    else:
        loss = feature_alignment(member.network.features(seen), member.means[targets])
    return -loss if ascend else loss


def descend(request: Request, draws: Sequence[Sequence[Turn]], direction: Direction) -> Images:
    """Protect images by steps of one level against the signs of a direction, or of its sum with those before, if there is momentum.

    All images take a step before any takes the next one, so that a network that is loaded when it is drawn serves all of them.

    Args:
        request: with an ensemble and targets.
        draws: for each step the positions of the members drawn for it, with their looks.
        direction: from a step's draws, images and clean images, whole levels as floats `(b, C, H, W)` on the ensemble's device (pictures of
            their own size one after the other, `(sum CHW,)`), and targets `(b,)` to the gradient to descend on. It is called again for
            images whose memory ran out, so it draws nothing itself.

    Returns:
        Protected images, `(B, C, H, W)` uint8 on the CPU, or pictures of their own size.

    Raises:
        ValueError: gradients of the ensemble are no numbers; the images would be released unprotected.
    """
    config, like, wanted = request.config, request.members[draws[0][0][0]].network.mean, request.targets
    assert wanted is not None
    (clean, place), targets, momentum = flat(request.images), wanted.to(like.device), config.momentum or 0.0
    clean = clean.to(like.device)

    def levels(images: Tensor) -> Tensor:
        return to_device(images, like, config.kernels)

    x, velocity = clean.clone(), levels(clean).zero_() if momentum else None
    diverged = torch.zeros((), device=like.device)

    def gradients(step: int, drawn: Sequence[Turn], part: slice) -> tuple[slice, Tensor, Tensor, Tensor]:
        own = place(part)
        at, centre = levels(x[own]), levels(clean[own])
        with arithmetic(like.device, config.precision):
            return own, at, centre, direction(request.looked(step, drawn, part), at, centre, targets[part])

    for step, drawn in enumerate(draws):
        assert all((request.members[k].means is not None) == config.aligns_features for k, _ in drawn)
        for own, at, centre, total in request.batch.run(partial(gradients, step, drawn), len(targets), pixels(request.images)):
            if velocity is not None:
                total = velocity[own].mul_(momentum).add_(total)
            diverged += total.sum()  # NaN if any value is: its sign is 0 for torch, which would pass for a pixel that is to stay
            # Whole levels in, whole levels out: the conversion is exact, and rounding guards against a future step that is not.
            x[own] = project(at - total.sign(), centre, request.budget.limit).round().to(torch.uint8)
    if diverged.isnan():  # asked once, because a GPU is waited for
        raise ValueError("the ensemble's gradients are not finite numbers: a checkpoint is of a training that diverged")
    return unflat(x.cpu().contiguous(), request.images)


def craft(
    members: Sequence[Member],
    images: Tensor,
    targets: Tensor,
    config: CraftConfig,
    generator: torch.Generator,
    batch_size: int | None = None,
    views: Sequence[str] = PLAIN,
) -> Tensor:
    """Protect images with an ensemble at hand, by any method that needs no other preparation than class means.

    Args:
        members: the ensemble, all on one device; with class means for the methods that align features. With views, a member for each
            checkpoint and view of the mix, the views of a checkpoint side by side, in the mix's order.
        images: clean images, `(B, C, H, W)` uint8, on any device.
        targets: class each image is drawn towards, or, untargeted, away from, `(B,)`; its own class if the method has no targets.
        config: method, budget, steps.
        generator: on the CPU; source of the draws that the images have in common. Those of single images derive from its seed.
        batch_size: number of images whose gradients are taken at once; what fits memory if not given.
        views: the mix, in which a name that comes several times has as many shares.

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
        views=views,
        generator=generator,
        view_draws=generator,
        batch=MicroBatch.fitting(images.shape[1:], device, batch_size or "auto", config.kernels),
    )
    return one_size(protect(request))


craft_images = craft  # the public name of `sep`, where `craft` is this module
