"""Similarity of the gradients of an ensemble's members; by the paper, those of checkpoints are close to orthogonal.

Legend: B images, C channels, H W pixels, N members.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from sep.craft import gradient
from sep.ensemble import Member
from sep.execution import to_device


def gradient_cosines(members: Sequence[Member], images: Tensor, targets: Tensor) -> Tensor:
    """Return cosines between the members' gradients with respect to the pixels, mean over images: `(N, N)` float64 on the CPU.

    Args:
        members: all on one device.
        images: clean images, `(B, C, H, W)` uint8.
        targets: class each image is drawn towards, `(B,)`.
    """
    like = members[0].network.mean
    levels, targets = to_device(images, like, "fused"), targets.to(like.device)
    directions = torch.stack([functional.normalize(gradient(member, levels, targets).flatten(1)) for member in members])
    return torch.einsum("ibp,jbp->ij", directions, directions).double().cpu() / len(images)
