"""Gradients per second on photographs at their own size, beside images that have the size that networks see."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from sep.craft_config import CraftConfig
from sep.ensemble import Member, freeze
from sep.execution import MicroBatch
from sep.methods.request import Request, protect
from sep.models import build
from sep.pictures import Images, Pictures
from tests.benchmarks.trained import device
from tests.benchmarks.turns import in_turns

SEEN, PHOTO = 64, (375, 500)
CHECKPOINTS, IMAGES, CLASSES = 10, 32, 5


def measure(name: str, images: int, repetitions: int) -> dict[str, Any]:
    """Measure crafting (sep) with networks of 64 pixels, of images of that size and of photographs of 500 x 375, in turns."""
    members = []
    for seed in range(CHECKPOINTS):
        torch.manual_seed(seed)
        members.append(Member(freeze(build(name, CLASSES, SEEN, [128.0] * 3, [64.0] * 3)).to(device())))
    draw = torch.Generator().manual_seed(0)
    contenders: dict[str, Images] = {
        "one size": torch.randint(256, (images, 3, SEEN, SEEN), generator=draw, dtype=torch.uint8),
        "own size": Pictures([torch.randint(256, (3, *PHOTO), generator=draw, dtype=torch.uint8) for _ in range(images)]),
    }
    seconds = in_turns({kind: partial(_craft, members, held) for kind, held in contenders.items()}, repetitions)
    rates = {kind: round(images * CHECKPOINTS / value, 1) for kind, value in seconds.items()}
    return {"input_size": SEEN, "photo": list(PHOTO), **rates, "ratio": round(rates["own size"] / rates["one size"], 2)}


def _craft(members: list[Member], images: Images) -> None:
    """Take one step."""
    count, config = len(images), CraftConfig(method="sep", steps=1, checkpoints=CHECKPOINTS)
    labels = torch.arange(count) % CLASSES
    batch = MicroBatch.fitting((3, SEEN, SEEN), device())
    budget = config.budget((3, *PHOTO))
    protect(Request(images, labels, CLASSES, range(count), 0, budget, None, config, members, targets=labels, batch=batch, input_size=SEEN))
