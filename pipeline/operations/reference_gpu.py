"""One GPU as it was measured, for plans on machines that have none.

The figures are of ResNet18 at 32 x 32 pixels, by torch 2.11 in bf16: crafting with fused kernels, training with recorded steps of 128
images, and packing by one process (`tests/benchmarks/gpu/proof-h100.json`).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from pipeline.config.schema import RunConfig
from pipeline.operations.probe import Images, Speed, Step, coding_rate, flops, fresh, trained
from sep.choices import NetworkName

NAME = "NVIDIA H100"
NETWORK: NetworkName = "resnet18"
SIDE = 32  # pixels
GRADIENTS = 85_500.0  # per second
TRAINED = 38_800.0  # images per second
PACKED = 1_000.0  # images per second, by one process


def reference_speed(config: RunConfig, images: Images, num_classes: int) -> Speed:
    """Return the speed of that GPU with the networks of a run, scaled by the operations of each on these images.

    An evaluation takes a third of a training step. Networks much smaller than the one that was measured do not fill the GPU, so that
    their rates are bounds.
    """
    measured = flops(fresh(NETWORK, torch.zeros(1, 3, SIDE, SIDE), num_classes), torch.zeros(1, 3, SIDE, SIDE))
    work = {name: flops(fresh(name, images.pixels, num_classes), images.pixels[:1]) / measured for name in trained(config)}
    gradients: dict[str, float] = {name: GRADIENTS / work[name] for name in config.surrogate.networks}
    training = {name: Step(0, each / TRAINED) for name, each in work.items()}
    return Speed(gradients, training, {name: 3 * TRAINED / each for name, each in work.items()})


def reference_images(images: Images) -> Images:
    """Return the images as one process beside that GPU packs and releases them: as much slower than small ones as they are here."""
    faster = PACKED / coding_rate(SIDE)
    return replace(images, per_second=faster * images.per_second, released_per_second=faster * images.released_per_second)
