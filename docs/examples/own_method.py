"""A method of your own: a function from a request to images, and what it may spend on each of them.

Here every class gets a checkerboard with squares of its own size, which is no good protection and easily seen.
"""

import torch
from torch import Tensor

from sep.budget import check_budget, largest_change
from sep.methods.request import Request, added


def checkerboard(request: Request) -> Tensor:
    """Add the board of its class to each image: `(B, C, H, W)` uint8."""
    _, _, height, width = request.images.shape
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
    boards = [1 - 2 * ((rows // side + columns // side) % 2) for side in range(1, request.num_classes + 1)]
    return added(request.images, request.budget.limit * torch.stack(boards)[request.classes][:, None])


images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
request = Request(
    images=images,
    classes=torch.arange(8) % 4,
    num_classes=4,
    seeds=range(8),  # one per image, for random draws of its own: request.own(...)
    seed=0,  # one for the whole release, for what a class has in common: request.common()
    budget=largest_change(8, images.shape[1:]),
)
protected = checkerboard(request)
check_budget(protected, images, request.budget)  # in integers, as the pipeline does it on what is released
print(f"largest change: {(protected.int() - images.int()).abs().max()} of {request.budget}")
