"""The views by name: what may happen to a stored picture before a network sees it (method, "Views").

A new view is a function, in the module of its kind, and an entry here. The functions are imported when they are called, so that this
table, and with it the command line, needs no torch.

Legend: B images, H W pixels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from sep.deferred import Deferred

if TYPE_CHECKING:
    from torch import Generator, Tensor

NUMBER = re.compile(r"(.+)-([1-9]\d*)")
PLAIN = ("none",)  # the mix of the paper: networks see pictures as they are stored

new_generator = Deferred("torch:Generator")
arithmetic = Deferred("sep.execution:arithmetic")
seen_at_input_size = Deferred("sep.views.own_size:seen_at_input_size")
as_stored = Deferred("sep.countermeasures.preprocessing:as_stored")


@dataclass(frozen=True)
class OwnSize:
    """Pictures that are looked at together, each at its own size, and how networks see them.

    Attributes:
        sizes: height and width of each.
        input_size: side that networks see.
        draws: for each picture what its draws depend on; without it networks see all of them as in a test.
    """

    sizes: Sequence[tuple[int, int]]
    input_size: int
    draws: Sequence[str] = ()


@dataclass(frozen=True)
class Look:
    """The circumstances of one look through a view, the same for all images that are looked at together.

    Attributes:
        seed: of the view's draws.
        eps_levels: levels that the images may still move, by which a rounding decides what a gradient can reach.
        own_size: of pictures of their own size, which lie one after the other.
        each: whether each image may have draws of its own, as in training; otherwise they share them.
    """

    seed: int = 0
    eps_levels: int = 8
    own_size: OwnSize | None = None
    each: bool = False

    @property
    def draws(self) -> Generator:
        """A fresh generator on the CPU."""
        generator: Generator = new_generator().manual_seed(self.seed)
        return generator


@dataclass(frozen=True, kw_only=True)
class View:
    """One thing that may happen to a stored picture. Both forms agree: a test holds them to each other.

    Attributes:
        name: as it is given on the command line.
        crafted: the differentiable form, batched on the device: `(B, 3, H, W)` whole float levels and a look to the same; of a numbered
            view, also the number. All images of a call share its draws, unless the look says otherwise.
        stored: the real thing, by a real codec: `(B, 3, H, W)` uint8 to the same; of a numbered view, also the number. None: `crafted`,
            which gives whole levels.
        numbers: the numbers that the name may end with; none of them: the name stands alone.
    """

    name: str = "none"
    crafted: Callable[..., Tensor]
    stored: Callable[..., Tensor] | None = None
    numbers: range = range(0)

    def on_levels(self, levels: Tensor, look: Look) -> Tensor:
        """Return float levels `(B, 3, H, W)` as a network sees them, differentiable. Sums are not rounded below float32.

        Pictures of their own size, `(sum 3HW,)`, pass the view as they are stored, and are then cut and resized to what a network sees.
        """
        with arithmetic(levels.device, "float32"):
            if look.own_size is None:
                return self.crafted(levels, look)
            seen: Tensor = seen_at_input_size(levels, [(self, look)])[0]
            return seen

    def on_stored(self, images: Tensor, look: Look | None = None) -> Tensor:
        """Return stored images `(B, 3, H, W)` uint8 after the real thing, in the same form."""
        if self.stored is not None:
            return self.stored(images)
        seen: Tensor = as_stored(self.crafted(images.float(), look or Look()))
        return seen


def see_together(levels: Tensor, looks: Sequence[tuple[View, Look]]) -> list[Tensor]:
    """Return what `View.on_levels` gives in several looks at pictures of their own size, in less time."""
    with arithmetic(levels.device, "float32"):
        seen: list[Tensor] = seen_at_input_size(levels, looks)
        return seen


def unchanged(levels: Tensor, _: Look) -> Tensor:
    """Return levels as they are."""
    return levels


VIEWS: dict[str, View] = {
    "none": View(crafted=unchanged),
    "jpeg": View(
        crafted=Deferred("sep.views.codecs:jpeg"), stored=Deferred("sep.countermeasures.preprocessing:jpeg"), numbers=range(1, 101)
    ),
    "webp": View(
        crafted=Deferred("sep.views.codecs:webp"), stored=Deferred("sep.countermeasures.preprocessing:webp"), numbers=range(1, 101)
    ),
    "blur": View(crafted=Deferred("sep.views.operations:blur"), stored=Deferred("sep.countermeasures.preprocessing:gaussian_blur")),
    "bits": View(
        crafted=Deferred("sep.views.operations:bits"), stored=Deferred("sep.countermeasures.preprocessing:bit_depth"), numbers=range(1, 8)
    ),
    "gray": View(crafted=Deferred("sep.views.operations:gray"), stored=Deferred("sep.countermeasures.preprocessing:grayscale")),
    "warp": View(crafted=Deferred("sep.views.operations:warp")),
    "noise": View(crafted=Deferred("sep.views.operations:noise"), numbers=range(1, 65)),
    "band-drop": View(crafted=Deferred("sep.views.operations:band_drop")),
    "resize-crop": View(crafted=Deferred("sep.views.operations:resize_crop")),
    "simclr": View(crafted=Deferred("sep.views.operations:simclr"), numbers=range(1, 101)),
}


def view(name: str) -> View:
    """Return the view of a name such as `blur` or `jpeg-10`.

    Raises:
        ValueError: the name is unknown, or its number is out of range.
    """
    numbered = NUMBER.fullmatch(name)
    found = VIEWS.get(numbered[1] if numbered else name)
    if found is None or bool(numbered) != bool(found.numbers) or (numbered and int(numbered[2]) not in found.numbers):
        raise ValueError(f"unknown view {name!r}; known are {known()}")
    if not numbered:
        return replace(found, name=name)
    number = int(numbered[2])
    stored = found.stored and partial(_numbered, found.stored, number)
    return replace(found, name=name, crafted=partial(_numbered, found.crafted, number), stored=stored)


def _numbered(function: Callable[..., Tensor], number: int, *arguments: object) -> Tensor:
    return function(*arguments, number)


def known() -> str:
    """Return the names of all views, with the numbers that they take."""
    return ", ".join(f"{name}-{each.numbers[0]} to {name}-{each.numbers[-1]}" if each.numbers else name for name, each in VIEWS.items())


def kinds(views: Sequence[str]) -> tuple[View, ...]:
    """Return the views of a mix, each once, in the order of the mix."""
    return tuple(view(name) for name in dict.fromkeys(views))


def is_plain(views: Sequence[str]) -> bool:
    """Return whether a mix is `none` alone, however many shares it has."""
    return set(views) == set(PLAIN)


def check_mix(views: Sequence[str]) -> None:
    """Check a mix, in which a name may come several times: it then has as many shares.

    Raises:
        ValueError: it is empty, or a name is unknown.
    """
    if not views:
        raise ValueError(f"a mix needs one view or more; known are {known()}")
    kinds(views)
