"""A method of your own: a function from a request to images, and an entry in the table that says what it needs.

Here every class gets a checkerboard with squares of its own size, which is no good protection and easily seen.
"""

import torch
from torch import Tensor

from sep import METHODS, CraftConfig, Request, protect
from sep.methods.registry import MethodSpec
from sep.methods.request import added


def checkerboard(request: Request) -> Tensor:
    """Add the board of its class to each image: `(B, C, H, W)` uint8."""
    _, _, height, width = request.images.shape
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
    boards = [1 - 2 * ((rows // side + columns // side) % 2) for side in range(1, request.num_classes + 1)]
    return added(request.images, request.budget.limit * torch.stack(boards)[request.classes][:, None])


METHODS["checkerboard"] = MethodSpec(description="a checkerboard of each class", perturb=checkerboard)

images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
config = CraftConfig(method="checkerboard", eps_levels=8)
request = Request(
    images=images,
    classes=torch.arange(8) % 4,
    num_classes=4,
    seeds=range(8),  # one per image, for random draws of its own: request.own(...)
    seed=0,  # one for the whole release, for what a class has in common: request.common()
    budget=config.budget(images.shape[1:]),
    config=config,
)
protected = protect(request)  # checks the budget in integers, as the pipeline does once more on what is released
print(f"largest change: {(protected.int() - images.int()).abs().max()} of {request.budget}")
