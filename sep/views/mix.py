"""Mixes of views: dealt to the members of an ensemble step by step, and to training images.

A mix is a list of names. A name that comes several times has as many shares.

Legend: B images, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from sep.augment import beside
from sep.countermeasures.preprocessing import as_stored
from sep.pictures import AnyImages, mapped
from sep.views.registry import Look, View, is_plain, kinds

LARGEST_SEED = 2**62
Looks = Sequence[tuple[View, Look]]  # each through a view of the mix
Turn = tuple[int, Look]  # the place of a member in the ensemble, and its look in that turn


def shuffled(cards: int, count: int, generator: torch.Generator) -> Tensor:
    """Return so many draws, `(count,)`, from a deck of cards 0 to `cards - 1`, which is shuffled again whenever it is empty."""
    decks = [torch.randperm(cards, generator=generator) for _ in range(-(-count // cards))]
    return torch.cat(decks)[:count]


def looks(views: Sequence[str], count: int, eps_levels: int, generator: torch.Generator) -> Looks:
    """Deal the mix: so many looks, each through one view. A mix of `none` alone draws nothing.

    Args:
        views: the mix.
        count: number of looks.
        eps_levels: levels that the images may move.
        generator: on the CPU.
    """
    if is_plain(views):
        return [(kinds(views)[0], Look(eps_levels=eps_levels))] * count
    named = {each.name: each for each in kinds(views)}
    dealt = shuffled(len(views), count, generator).tolist()
    seeds = torch.randint(LARGEST_SEED, (count,), generator=generator).tolist()
    return [(named[views[card]], Look(seed, eps_levels)) for card, seed in zip(dealt, seeds, strict=True)]


def turns(drawn: Sequence[Sequence[int]], views: Sequence[str], eps_levels: int, generator: torch.Generator) -> list[list[Turn]]:
    """Give each checkpoint that is drawn for a step one view of the mix, so that views cost no further gradients.

    Args:
        drawn: for each step the checkpoints, the same number of them.
        views: the mix.
        eps_levels: levels that the images may move.
        generator: on the CPU.

    Returns:
        For each step the places in an ensemble that has a member for each checkpoint and view, the views of a checkpoint side by side.
    """
    dealt = iter(looks(views, sum(map(len, drawn)), eps_levels, generator))
    order = list(dict.fromkeys(views))
    return [[(len(order) * k + order.index(each.name), look) for k, (each, look) in zip(step, dealt, strict=False)] for step in drawn]


def each_its_own(images: AnyImages, views: Sequence[str], generator: torch.Generator) -> AnyImages:
    """Show each image in one view of the mix, drawn anew: `(B, 3, H, W)` uint8 to the same, or pictures of their own size.

    A mix of `none` alone draws nothing.
    """
    if is_plain(views):
        return images
    return mapped(partial(_each_of_one_size, views=views, generator=generator), images)


def _each_of_one_size(images: Tensor, views: Sequence[str], generator: torch.Generator) -> Tensor:
    order, seen = list(dict.fromkeys(views)), images.clone()
    places = torch.tensor([order.index(name) for name in views])
    own = places[torch.randint(len(views), (len(images),), generator=generator)]
    for place, each in enumerate(kinds(views)):
        chosen = beside(images, (own == place).nonzero().flatten())
        if len(chosen):
            seen[chosen] = _seen(images[chosen], each, _seed(generator))
    return seen


def one_a_batch(
    batches: Iterable[tuple[Tensor, Tensor]], views: Sequence[str], generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Show each batch of images `(B, 3, H, W)` uint8 in one view of the mix, drawn for it."""
    for images, labels in batches:
        ((each, look),) = looks(views, 1, 0, generator)
        yield _seen(images, each, look.seed), labels


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(LARGEST_SEED, (), generator=generator))


def _seen(images: Tensor, view: View, seed: int) -> Tensor:
    return images if view.name == "none" else as_stored(view.on_levels(images.float(), Look(seed, each=True)))
