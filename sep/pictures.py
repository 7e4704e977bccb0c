"""Images of one size as one tensor, and pictures of many sizes as several; what treats both alike sees flat levels.

Legend: B images, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor


class Pictures:
    """Pictures of many sizes, uint8 `(C, H, W)` each, indexed as the first dimension of a tensor is."""

    def __init__(self, each: Sequence[Tensor]) -> None:
        """Hold the pictures, without a copy."""
        self.each = list(each)

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.each)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield every picture, `(C, H, W)`."""
        return iter(self.each)

    def __getitem__(self, chosen: slice | Tensor) -> Pictures:
        """Return some pictures, by a slice or by their places."""
        return Pictures(self.each[chosen] if isinstance(chosen, slice) else [self.each[place] for place in chosen.tolist()])

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of every picture."""
        return [(picture.shape[1], picture.shape[2]) for picture in self.each]

    def cpu(self) -> Pictures:
        """Return the pictures on the CPU."""
        return Pictures([picture.cpu() for picture in self.each])


Images = Tensor | Pictures  # `(B, C, H, W)` uint8, or pictures of many sizes
AnyImages = TypeVar("AnyImages", Tensor, Pictures, Tensor | Pictures)


def pixels(images: Images) -> list[int]:
    """Return the number of pixels of each picture; nothing of images of one size."""
    return [] if isinstance(images, Tensor) else [height * width for height, width in images.sizes]


def seen_shape(images: Images, side: int | None) -> tuple[int, ...]:
    """Return the shape `(C, H, W)` of what a network sees of an image: S x S of pictures of their own size."""
    return (3, side, side) if side is not None else tuple(one_size(images).shape[1:])


def one_size(images: Images) -> Tensor:
    """Return images that must be of one size, as all are of methods that know no other."""
    assert isinstance(images, Tensor)
    return images


def stacks(images: Images) -> list[Tensor]:
    """Return tensors `(b, C, H, W)`: one of all images, or one of each picture."""
    return [images] if isinstance(images, Tensor) else [picture[None] for picture in images]


def mapped(function: Callable[..., Tensor], images: AnyImages, *others: Images) -> AnyImages:
    """Return images after a function of tensors `(b, C, H, W)`, of these and others, that treats each image by itself."""
    if isinstance(images, Tensor):
        return function(images, *others)
    return Pictures([function(*parts)[0] for parts in zip(*map(stacks, (images, *others)), strict=True)])


def joined(parts: Sequence[Images]) -> Images:
    """Return all images of several parts of one kind, in order."""
    if all(isinstance(part, Tensor) for part in parts):
        return torch.cat([one_size(part) for part in parts])
    return Pictures([picture for part in parts for picture in part])


def flat(images: Images) -> tuple[Tensor, Callable[[slice], slice]]:
    """Return the levels of images to compute with, and the place of some images among them.

    A tensor stays as it is. Pictures are laid one after the other, `(sum CHW,)`.
    """
    if isinstance(images, Tensor):
        return images, lambda part: part
    ends = [0, *accumulate(picture.numel() for picture in images)]
    return torch.cat([picture.flatten() for picture in images]), lambda part: slice(ends[part.start], ends[part.stop])


def apart(levels: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Return each picture, `(1, 3, H, W)`, of levels that lie one after the other, without a copy."""
    counts = [3 * height * width for height, width in sizes]
    return [part.view(1, 3, *size) for part, size in zip(torch.split(levels, counts), sizes, strict=True)]


def unflat(levels: Tensor, like: Images) -> Images:
    """Return levels from `flat` as images of the sizes of others, without a copy."""
    return levels if isinstance(like, Tensor) else Pictures([picture[0] for picture in apart(levels, like.sizes)])
