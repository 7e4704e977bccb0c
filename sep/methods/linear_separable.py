"""Linearly separable perturbations (Yu et al. 2022, "Availability Attacks Create Shortcuts").

Legend: B images, C channels, H W pixels, K protected classes, G cells of the grid a side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from sep.budget import Budget, whole_levels
from sep.methods.request import Request, added
from sep.pictures import one_size

CELLS = 4  # G: the paper's patches of 8 x 8 in an image of 32 x 32
LEVELS = 6  # root mean square of a change: the paper's radius is 6/255 times the root of the number of values
SPREAD = 0.4  # of the points of a class around its corner, which is 1 away from the centre in every direction


def squared_levels(_: int, shape: Sequence[int]) -> Budget:
    """Return the paper's L2 ball, of radius `6/255 sqrt(C H W)` for images `(C, H, W)` of values from 0 to 1: 1.30 for CIFAR-10."""
    channels, height, width = shape
    return Budget("l2", LEVELS**2 * channels * height * width)


def linear_separable(request: Request) -> Tensor:
    """Add to each image a coarse pattern of large cells, by which a linear model tells the classes apart.

    A class is a random corner of a hypercube with a dimension for each cell and channel. The point of an image is drawn normally around
    the corner of its class, laid out as a grid of flat patches, and scaled to the budget. Three things deviate from the paper: the normal
    distribution is the same for all classes, where the paper's (scikit-learn's `make_classification`) has a random covariance for each;
    the grid has 4 x 4 cells for images of any size; and changes are whole levels.

    Args:
        request: without preparation; the pattern of an image depends on its own seed and the release's.

    Returns:
        Protected images, `(B, C, H, W)` uint8.
    """
    _, channels, height, width = one_size(request.images).shape
    corners = torch.randint(2, (request.num_classes, channels, CELLS, CELLS), generator=request.common(), dtype=torch.float64) * 2 - 1
    points = corners[request.classes] + SPREAD * request.own(channels, CELLS, CELLS)
    patches = functional.interpolate(points, (height, width), mode="nearest-exact")
    return added(one_size(request.images), whole_levels(patches, request.budget.limit))
