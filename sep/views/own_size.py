"""Pictures of their own size as networks of one input size see them: in tests, in training, and in crafting (method, "Native size").

Legend: B pictures, H W their pixels, S side of what networks see.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from sep.pictures import Images, apart, one_size, stacks
from sep.train_config import Augmentation
from sep.views.mix import Looks
from sep.views.operations import LARGEST, Window, cut
from sep.views.registry import OwnSize

LEAST_AREA: dict[Augmentation, float] = {"crop": 0.64, "crop-flip": 0.64, "resized-crop-flip": 0.08}  # of a window; 0.64: sides of 80 %
OfClass = Callable[[Tensor, Tensor], Tensor]
FLIPS: tuple[Augmentation, ...] = ("crop-flip", "resized-crop-flip")


def _resized(size: tuple[int, int], short: float) -> tuple[int, int]:
    """Return height and width of a picture whose short side becomes `short`."""
    height, width = (round(side * short / min(size)) for side in size)
    return height, width


def _on_cores(view: Callable[..., Tensor], threads: int, *of_each: Iterable[object]) -> Tensor:
    """Return a view of each picture, `(B, 3, S, S)`: each made by one of several threads, as it is too little for all of them."""
    if threads == 1:
        return torch.cat([*map(view, *of_each)])
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return torch.cat([*pool.map(view, *of_each)])


def fixed_view(images: Images, side: int | None, threads: int = 1) -> Tensor:
    """Return images as networks see them in tests, `(B, 3, S, S)` uint8: the short side resized to S, antialiased, and the centre.

    Without S, images are of one size, and stay as they are.
    """
    if side is None:
        return one_size(images)

    def view(stack: Tensor) -> Tensor:
        height, width = _resized((stack.shape[2], stack.shape[3]), side)
        resized = interpolate(stack, (height, width), mode="bilinear", antialias=True)
        top, left = (height - side) // 2, (width - side) // 2
        return resized[..., top : top + side, left : left + side]

    return _on_cores(view, threads, stacks(images))


def training_view(images: Images, side: int | None, augmentation: Augmentation, generator: torch.Generator, threads: int = 1) -> Tensor:
    """Return pictures as networks see them in training, `(B, 3, S, S)` uint8: random windows, resized to S, antialiased; some mirrored.

    The distribution of `resized-crop-flip` is that of torchvision's RandomResizedCrop (8 % to 100 % of the area, aspect 3/4 to 4/3),
    except that a window that does not fit is cut to the picture. Windows of `crop` and `crop-flip` have at least 64 % of the area.
    Without augmentation pictures are seen as in tests. Without S, images are of one size, and stay as they are.

    Args:
        images: on the CPU.
        side: S.
        augmentation: of the training.
        generator: on the CPU.
        threads: that cut and resize.
    """
    if side is None or augmentation == "none":
        return fixed_view(images, side, threads)
    draws = torch.rand(5, len(images), generator=generator, dtype=torch.float64).tolist()

    def view(picture: Tensor, area: float, aspect: float, x: float, y: float, coin: float) -> Tensor:
        height, width = picture.shape[1:]
        share = LEAST_AREA[augmentation] + (1 - LEAST_AREA[augmentation]) * area
        ratio = math.exp((2 * aspect - 1) * math.log(4 / 3)) * height / width  # in pixels, not in shares of the sides
        rows, columns = (
            max(1, min(whole, round(whole * math.sqrt(part)))) for whole, part in ((height, share / ratio), (width, share * ratio))
        )
        top, left = round(y * (height - rows)), round(x * (width - columns))
        window = picture[None, :, top : top + rows, left : left + columns]
        window = interpolate(window, (side, side), mode="bilinear", antialias=True)
        return window.flip(3) if augmentation in FLIPS and coin < 0.5 else window

    return _on_cores(view, threads, images, *draws)


def fitted_at_input_size(change: OfClass, side: int) -> OfClass:
    """Make a function of images of one size and their labels one of pictures of any size.

    It is made to pictures that are resized to S x S as a whole, and its change, resized to each picture, is added to that picture. So
    patterns that a protection has resized to pictures lie on one another. The result is float32, neither whole nor clamped.

    Args:
        change: of levels `(B, 3, S, S)`, fitted to what `whole_view` gives.
        side: S.
    """

    def of_any_size(images: Tensor, labels: Tensor) -> Tensor:
        small = whole_view(images, side)
        added = change(small, labels) - small
        return images.float() + interpolate(added, tuple(images.shape[2:]), mode="bilinear", antialias=True)

    return of_any_size


def whole_view(images: Images, side: int) -> Tensor:
    """Return whole images resized to S x S, whatever their shape, `(B, 3, S, S)` float32, antialiased."""
    size = (side, side)
    return torch.cat([interpolate(stack.float(), size, mode="bilinear", antialias=True) for stack in stacks(images)])


def seen_at_input_size(levels: Tensor, looks: Looks) -> list[Tensor]:
    """Return what networks see of pictures in several looks, `(B, 3, S, S)` each, differentiable, of whole levels `(sum 3HW,)`.

    A picture passes the view as it is stored. Then half of the draws see it as in tests, and half at a random size, 1 to 1.75 times as
    large, and cut at random. The draws of a picture depend on no other. What several looks have in common is computed once.

    Args:
        levels: of the pictures, one after the other.
        looks: with the sizes of the pictures.
    """
    own = [look.own_size for _, look in looks]
    assert own[0] is not None
    side = own[0].input_size
    seen: list[list[Tensor]] = [[] for _ in looks]
    for number, picture in enumerate(apart(levels, own[0].sizes)):
        windows = [_window(each, number, look.seed) for each, (_, look) in zip(own, looks, strict=True) if each is not None]
        for view in dict.fromkeys((view.name, look.seed) for view, look in looks):
            same = [place for place, (each, look) in enumerate(looks) if (each.name, look.seed) == view]
            crafted, look = looks[same[0]][0].crafted, looks[same[0]][1]
            different = list(dict.fromkeys(windows[place] for place in same))
            found = dict(zip(different, cut(crafted(picture, look), different, (side, side)), strict=True))
            for place in same:
                seen[place].append(found[windows[place]])
    return [torch.cat(each).contiguous(memory_format=torch.channels_last) for each in seen]


def _window(own: OwnSize, number: int, seed: int) -> Window:
    """Return what a look sees of a picture."""
    coin, scale, top, left = _draws(own.draws[number], seed) if own.draws else (0.0, 0.0, 0.5, 0.5)
    random, side = coin >= 0.5, own.input_size
    resized = _resized(own.sizes[number], side * (1 + (LARGEST - 1) * scale) if random else side)
    rest = resized[0] - side, resized[1] - side
    return Window(resized, (round(top * rest[0]), round(left * rest[1])) if random else (rest[0] // 2, rest[1] // 2))


def _draws(name: str, seed: int) -> tuple[float, ...]:
    """Return four numbers from 0 up to 1, by a hash: a generator for each look at each picture would take longer than the look."""
    digest = blake2b(f"{name} {seed}".encode(), digest_size=32).digest()
    return tuple(number / 2**64 for number in struct.unpack("<4Q", digest))
