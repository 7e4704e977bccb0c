"""Agreement of the library's kernels and precisions with the plain float32 loop, on trained checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sep.craft import gradient
from sep.execution import arithmetic, to_device
from tests.benchmarks import plain
from tests.benchmarks.rates import VARIANTS
from tests.benchmarks.trained import Trained, device


def share(one: Tensor, other: Tensor) -> float:
    """Return the share of equal values."""
    return round(float((one == other).double().mean()), 5)


def measure(trained: Trained, images: int, steps: int, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return one row per variant of feature alignment: shares of equal signs in the first gradient, and of equal values at the end."""
    networks = trained.plain_networks()
    clean, targets = trained.images[:images], trained.targets[:images]
    means = [means.to(device()) for means in trained.means]
    with arithmetic(device(), "float32"):
        first = torch.stack(plain.all_gradients(networks, clean.float().to(device()), targets.to(device()), means)).sum(0).sign()
        crafted = trained.plain_craft(networks, "sep-fa", images, steps, images)
    rows = []
    for name in names:
        kernels, precision = VARIANTS[name]
        members = trained.members("sep-fa", kernels)
        levels = to_device(clean, members[0].network.mean, kernels)
        with arithmetic(device(), precision):
            total = torch.stack([gradient(member, levels, targets.to(device())) for member in members]).sum(0)
        ours = trained.craft(members, "sep-fa", images, steps, precision, kernels)
        row = {"network": trained.name, "variant": name, "images": images, "checkpoints": len(networks), "steps": steps}
        rows.append(row | {"equal_signs": share(total.sign(), first), "equal_values": share(ours, crafted)})
    return rows
