"""Error-minimising noise as a method: what `noise_training` has made, added to images.

Legend: B images, C channels, H W pixels, R rows of noise, one for each image or one or more for each class, c channels of the noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from sep.methods.request import Request, added
from sep.pictures import Images, Pictures, mapped, one_size


def own_noise(request: Request) -> Tensor:
    """Add to each image the noise that was made for it: `(B, C, H, W)` uint8, by `prepared`, `(B, c, H, W)` whole levels."""
    assert request.prepared is not None
    return added(one_size(request.images), request.prepared)


def class_noise(request: Request) -> Images:
    """Add to each image a noise of its class: `(B, C, H, W)` uint8, by `prepared`, `(R, c, H, W)` whole levels, rows as `class_rows`.

    A picture of its own size gets it resized.
    """
    assert request.prepared is not None
    patterns = len(request.prepared) // request.num_classes
    noise = request.prepared[class_rows(request.classes, request.seeds, patterns)]
    if isinstance(request.images, Tensor):
        return added(request.images, noise)
    return mapped(lambda picture, pattern: added(picture, resized(pattern, picture.shape[2:])), request.images, Pictures(list(noise)))


def resized(pattern: Tensor, size: Sequence[int]) -> Tensor:
    """Return a pattern `(1, c, S, S)` at the size of a picture, `(1, c, H, W)`, in whole levels.

    Its side becomes the picture's short side, as networks see the centre of a picture. Along the long side it goes on mirrored.
    """
    side, (height, width) = min(size), size
    square = interpolate(pattern.float(), (side, side), mode="bilinear", antialias=True).round()
    rows, columns = (_mirrored(side, whole) for whole in (height, width))
    return square[:, :, rows][..., columns]


def _mirrored(side: int, whole: int) -> Tensor:
    """Return the places in a pattern of each row of a picture, in whose centre the pattern lies."""
    place = (torch.arange(whole) - (whole - side) // 2) % (2 * side)
    return torch.minimum(place, 2 * side - 1 - place)


def class_rows(classes: Tensor, seeds: Sequence[int], patterns: int) -> Tensor:
    """Return the row of noise of each image, `(B,)`: those of a class are next to each other, and the image's seed chooses among them.

    Args:
        classes: places of the images' classes among the protected ones, `(B,)`.
        seeds: of the images, which derive from their keys and the run's seed.
        patterns: rows of a class.
    """
    return classes if patterns == 1 else classes * patterns + torch.tensor([seed % patterns for seed in seeds])
