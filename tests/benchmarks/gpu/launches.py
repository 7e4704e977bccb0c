"""What the host of a GPU does: launches, copies and waits, counted on a device that takes every launch and computes nothing.

NULL/python -m tests.benchmarks.gpu.launches      whose variable NULLCUDA names the library of that device

Its values are garbage and its times are the host's alone, so this counts, and measures nothing.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from pipeline.training.batches import InMemory, Split
from sep.choices import Kernels
from sep.craft import gradient
from sep.craft_config import CraftConfig
from sep.ensemble import Member, class_sums, compile_together, freeze
from sep.execution import arithmetic, resolve, to_device
from sep.fitting import confusion, optimiser, train_epoch
from sep.methods.registry import METHODS, Method
from sep.methods.request import Request
from sep.models import build
from sep.recording import WARM_UP
from sep.step import Step
from sep.train_config import TrainConfig

CLASSES, SIDE, BATCH, SHARD, MEMBERS = 10, 32, 128, 500, 3
COLUMNS = {  # by the beginnings of the names that the device counts
    "launches": ("kernel", "gemm", "cudnn", "memset"),
    "graphs": ("graph",),
    "copies": ("copy",),
    "waits": ("wait",),
}
DEVICE = torch.device("cuda")

images = torch.zeros(2048, 3, SIDE, SIDE, dtype=torch.uint8)
labels = torch.arange(len(images)) % CLASSES


def counted(action: Callable[[], object]) -> Counter[str]:
    """Return how often an action did what each column counts."""
    library = ctypes.CDLL(os.environ["NULLCUDA"])
    library.nullcuda_log(1)
    action()
    library.nullcuda_log(0)
    with tempfile.TemporaryDirectory() as folder:
        library.nullcuda_dump(f"{folder}/counts".encode())
        lines = [line.split("\t") for line in Path(f"{folder}/counts").read_text().splitlines()]
    found = Counter({column: 0 for column in COLUMNS})
    for times, name in lines:
        found.update({column: int(times) for column, kinds in COLUMNS.items() if name.startswith(kinds)})
    return found


def each(action: Callable[[int], object], one: int = 1) -> dict[str, float]:
    """Return the counts of one of a number of repetitions, each `one` of what is counted, without what begins and ends them all."""
    action(WARM_UP + 2)  # sets libraries up, and records
    few, many = counted(partial(action, 2)), counted(partial(action, 6))
    return {column: (many[column] - few[column]) / (4 * one) for column in COLUMNS}


def training(recorded: bool) -> dict[str, float]:
    """Count a training step as surrogates and victims make it."""
    network = build("resnet18", CLASSES, SIDE, (120.0,) * 3, (60.0,) * 3).to(DEVICE).to(memory_format=torch.channels_last)
    sgd, scheduler = optimiser(network, TrainConfig(epochs=1), 1)
    precision = resolve("auto", DEVICE)
    step, draws = Step(network, sgd, precision, recorded=recorded), torch.Generator()
    batches = InMemory(images.to(DEVICE), labels.to(DEVICE), Split(BATCH, 0))

    def epoch(steps: int) -> None:
        train_epoch(network, sgd, scheduler, islice(batches.epoch(0), steps), "crop-flip", draws, precision, None, step)

    return each(epoch)


def tests() -> dict[str, float]:
    """Count a batch of test images on the device."""
    network = build("resnet18", CLASSES, SIDE, (120.0,) * 3, (60.0,) * 3).to(DEVICE).to(memory_format=torch.channels_last)
    batch = images.to(DEVICE), labels.to(DEVICE)
    return each(lambda count: confusion(network, [batch] * count, CLASSES))


def members(kernels: Kernels, aligned: bool) -> list[Member]:
    """Return an ensemble."""
    networks = [freeze(build("resnet18", CLASSES, SIDE, (120.0,) * 3, (60.0,) * 3), kernels).to(DEVICE) for _ in range(MEMBERS)]
    if kernels == "compiled":
        compile_together(networks)
    return [Member(network, torch.zeros(CLASSES, 512, device=DEVICE) if aligned else None) for network in networks]


def gradients(kernels: Kernels, aligned: bool) -> dict[str, float]:
    """Count the gradient of a batch."""
    member = members(kernels, aligned)[0]
    levels, targets = to_device(images[:SHARD], member.network.mean, kernels), labels[:SHARD].to(DEVICE)

    def some(count: int) -> None:
        with arithmetic(DEVICE, "auto"):
            for _ in range(count):
                gradient(member, levels, targets)

    return each(some)


def crafting(method: Method) -> dict[str, float]:
    """Count what crafting a shard by a method does for each gradient of the shard: steps, draws and sums included."""
    kind = METHODS[method]
    ensemble = members("fused", kind.preparation == "class-means")

    def craft(steps: int) -> None:
        config = CraftConfig(method=method, steps=steps, checkpoints=MEMBERS).resolved()
        shard, seeds, budget = images[:SHARD], range(SHARD), config.budget(images.shape[1:])
        request = Request(shard, labels[:SHARD], CLASSES, seeds, 0, budget, config=config, members=ensemble, targets=labels[:SHARD])
        kind.perturb(request)

    return each(craft, CraftConfig(method=method, steps=1, checkpoints=MEMBERS).gradients_per_image(MEMBERS))


def means() -> dict[str, float]:
    """Count a batch of class means."""
    network = members("fused", aligned=False)[0].network
    return each(lambda count: class_sums(network, [(images[:SHARD], labels[:SHARD])] * count, CLASSES))


ROWS: dict[str, Callable[[], dict[str, float]]] = {
    f"training step of {BATCH} images, plain": partial(training, False),
    "the same, recorded": partial(training, True),
    "batch of test images": tests,
    **{
        f"gradient of a batch, {kernels} kernels, {'feature alignment' if aligned else 'cross-entropy'}": partial(
            gradients, kernels, aligned
        )
        for kernels in ("plain", "fused", "compiled")
        for aligned in (False, True)
    },
    **{f"crafting by {method}, for each gradient of a batch": partial(crafting, method) for method in METHODS if METHODS[method].surrogate},
    "class means of a batch": means,
}


def main() -> int:
    """Print the table."""
    if not os.environ.get("NULLCUDA"):
        print(__doc__)
        return 2
    print(f"| | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    for name, row in ROWS.items():
        try:
            print(f"| {name} | {' | '.join(f'{value:.3g}' for value in row().values())} |", flush=True)
        except Exception as error:  # that device lacks parts of a driver
            print(f"| {name} | not on this device: {str(error).strip().splitlines()[0].rpartition('/')[2]} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
