"""Rates and profiles of one GPU, without Ray: a card that grows measurement by measurement, the most valuable first.

python -m tests.benchmarks.gpu.bench --to FILE --minutes 3     exit code 0: everything is measured, 3: the same command goes on
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from cluster.deadline import Deadline
from pipeline.results.machine import machine
from pipeline.storage.records import to_json
from pipeline.training.batches import InMemory, Split
from sep.choices import Precision
from sep.craft import gradient
from sep.execution import arithmetic, backends, resolve, to_device
from sep.fitting import Epoch, fit
from sep.models import build
from sep.train_config import TrainConfig
from tests.benchmarks.gpu.kernels import profiled
from tests.benchmarks.rates import VARIANTS, convolutions_alone, gradients
from tests.benchmarks.trained import Trained, device, train
from tests.benchmarks.turns import in_turns, synchronise

TIME_IS_UP = 3
# Ways to make a training step, by the settings that ask for them; the second, where this version records steps.
TRAININGS: dict[str, dict[str, Any]] = (
    {"eager": {"recorded": False}, "recorded": {"recorded": True}} if hasattr(TrainConfig, "recorded") else {"eager": {}}
)
PRODUCTS: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "tf32": torch.float32, "float32": torch.float32}
Figures = dict[str, Any]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Size:
    """The extent of the measurement."""

    network: str
    images: int
    crafting_steps: int
    batches: tuple[int, ...]  # of gradients; first the number of images in a shard, which is what the pipeline takes
    training_batch: int
    side: int  # of the matrices
    products: int  # of them in a turn
    warm_up: float  # seconds of products before the first turn: an idle GPU takes a while to reach its clock
    repetitions: int


FULL = Size("resnet18", 6000, 10, (500, 250, 1000, 2000), 128, 8192, 50, 0.5, 3)
MINIATURE = Size("resnet8", 80, 1, (20, 40), 20, 256, 2, 0, 1)


@dataclass(frozen=True)
class Bench:
    """The measurements, and what they need. They read the figures of earlier ones from `card`."""

    size: Size
    card: Figures

    @cached_property
    def trained(self) -> Trained:
        """Two checkpoints of the network."""
        return train(self.size.network, self.size.images, 2)

    @property
    def measurements(self) -> dict[str, Callable[[], Figures]]:
        """By name, the most valuable first."""
        gpu, first, *others = device().type == "cuda", *self.size.batches
        ours, second, *rest = (
            ["fused, bf16", "compiled, bf16", "fused, tf32", "fused, float32"] if gpu else ["fused, float32", "compiled, float32"]
        )
        return {
            "matrix products": self.products,
            "operations": self.operations,
            **{f"training, {way}": partial(self.training, settings) for way, settings in TRAININGS.items()},
            f"gradients, {ours}, {first}": partial(self.gradients, ours, first),
            "convolutions alone": self.convolutions,
            f"profile of a gradient, {ours}": partial(self.profile_of_gradient, ours),
            **{f"profile of a training step, {way}": partial(self.profile_of_training, settings) for way, settings in TRAININGS.items()},
            f"gradients, {second}, {first}": partial(self.gradients, second, first),
            **{f"gradients, {ours}, {batch}": partial(self.gradients, ours, batch) for batch in others},
            f"profile of a gradient, {second}": partial(self.profile_of_gradient, second),
            **{f"gradients, {variant}, {first}": partial(self.gradients, variant, first) for variant in rest},
            **{f"gradients, {second}, {batch}": partial(self.gradients, second, batch) for batch in others},
        }

    def products(self) -> Figures:
        """Measure the rate of square matrix products of random numbers, in TFLOP/s by precision."""
        found = {}
        for precision in PRODUCTS if device().type == "cuda" else (resolve("auto", device()),):
            a, b = (torch.randn(self.size.side, self.size.side, device=device(), dtype=PRODUCTS[precision]) for _ in range(2))
            with backends(precision):
                turn, begun = partial(_products, a, b, self.size.products), time.perf_counter()
                while time.perf_counter() < begun + self.size.warm_up:
                    turn()
                    synchronise()
                seconds = in_turns({"": turn}, self.size.repetitions)[""]
            found[precision] = _rounded(2 * self.size.products * self.size.side**3 / seconds / 1e12)
        return {"tflops": found, "side": self.size.side}

    def operations(self) -> Figures:
        """Count the floating-point operations of products and convolutions, of one image's gradient and training."""
        member, network = self.trained.members("sep-fa", "plain", 1)[0], self._network()
        images, labels = self.trained.images[:2].to(device(), torch.float32), self.trained.labels[:2].to(device())

        def step() -> None:
            torch.autograd.backward(functional.cross_entropy(network(images)[1], labels))

        found: Figures = {}
        calls: dict[str, Callable[[], object]] = {"gradient": partial(gradient, member, images, labels), "training": step}
        for name, call in calls.items():
            with FlopCounterMode(display=False) as counter:
                call()
            found[name] = counter.get_total_flops() / 2
        return found

    def gradients(self, variant: str, batch: int) -> Figures:
        """Measure crafting by feature alignment, `batch` images at a time."""
        kernels, precision = VARIANTS[variant]
        members, images, steps = self.trained.members("sep-fa", kernels), min(len(self.trained.images), 4 * batch), self.size.crafting_steps
        craft = partial(self.trained.craft, members, "sep-fa", images, steps, precision, kernels, batch)
        rate = gradients("sep-fa", images, len(members), steps) / in_turns({"": craft}, self.size.repetitions)[""]
        return {"gradients_per_second": round(rate, 1), **self._share(rate, "gradient", precision)}

    def convolutions(self) -> Figures:
        """Measure the convolutions of a gradient alone, which bound it."""
        images = self.size.batches[0]
        rate = images / in_turns({"": convolutions_alone(self.trained, images)}, self.size.repetitions)[""]
        return {"gradients_per_second": round(rate, 1), **self._share(rate, "gradient", "auto")}

    def training(self, settings: Figures) -> Figures:
        """Measure one epoch of training, without tests."""
        epochs = self._epochs(settings, len(self.trained.images))
        next(epochs)
        seconds = min(next(epochs).seconds for _ in range(self.size.repetitions))
        steps = len(self.trained.images) // self.size.training_batch
        rate = steps * self.size.training_batch / seconds
        shown = {"images_per_second": round(rate, 1), "milliseconds_per_step": round(1000 * seconds / steps, 3)}
        return {**shown, "batch": self.size.training_batch, **self._share(rate, "training", "auto")}

    def profile_of_gradient(self, variant: str) -> Figures:
        """Profile the gradient of one batch by kernel."""
        kernels, precision = VARIANTS[variant]
        member, batch = self.trained.members("sep-fa", kernels, 1)[0], self.size.batches[0]
        levels, targets = to_device(self.trained.images[:batch], member.network.mean, kernels), self.trained.targets[:batch].to(device())

        def call() -> None:
            with arithmetic(device(), precision):
                gradient(member, levels, targets)

        return profiled(call, times=1)

    def profile_of_training(self, settings: Figures) -> Figures:
        """Profile an epoch of ten training steps by kernel, so that its end counts little; figures are of one step."""
        epochs = self._epochs(settings, min(len(self.trained.images), 10 * self.size.training_batch))
        next(epochs)  # what is recorded, is recorded here
        return profiled(lambda: next(epochs), times=min(len(self.trained.images) // self.size.training_batch, 10))

    def _network(self) -> Any:
        torch.manual_seed(0)
        pixels = self.trained.images.double().transpose(0, 1).flatten(1)
        network = build(self.size.network, 10, self.trained.images.shape[-1], pixels.mean(1).tolist(), pixels.std(1).tolist())
        return network.to(device()).to(memory_format=torch.channels_last)

    def _epochs(self, settings: Figures, images: int) -> Iterator[Epoch]:
        """Train as the pipeline does, for as many epochs as are asked for."""
        config = TrainConfig(epochs=1000, batch_size=self.size.training_batch, lr=0.01, **settings)
        held = self.trained.images[:images].to(device()), self.trained.labels[:images].to(device())
        batches = InMemory(*held, Split(config.batch_size, 0))
        draws = partial(torch.Generator().manual_seed, 0)
        return fit(self._network(), config, batches.epoch, batches.steps, lambda epoch: draws())

    def _share(self, rate: float, operation: str, precision: Precision) -> Figures:
        """Return the rate of operations, and its share of that of matrix products in the same precision, where both are known."""
        operations, products = self.card.get("operations", {}).get(operation), self.card.get("matrix products", {}).get("tflops", {})
        if not operations:
            return {}
        tflops, most = rate * operations / 1e12, products.get(resolve(precision, device()))
        return {"tflops": _rounded(tflops), "share_of_matrix_products": _rounded(tflops / most) if most else None}


def _products(a: torch.Tensor, b: torch.Tensor, count: int) -> None:
    for _ in range(count):
        torch.matmul(a, b)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def measure(size: Size, to: Path, deadline: Deadline, names: Sequence[str] = ()) -> bool:
    """Measure what the card at `to` lacks, and write it after each. Return whether everything is measured.

    What raises an error, or ended the process, is noted and not tried again.
    """
    card: Figures = json.loads(to.read_text()) if to.exists() else {"machine": machine(), "measured": {}}
    found = card["measured"]
    bench = Bench(size, found)
    wanted = [name for name in bench.measurements if not names or name in names]
    for name in wanted:
        if name in found:
            continue
        if deadline.passed():
            return False
        log.info("%s", name)
        found[name] = {"failed": "the process ended in it"}
        _write(to, card)
        begun = time.monotonic()
        try:
            found[name] = bench.measurements[name]()
        except Exception as error:  # the others can still be measured
            found[name] = {"failed": f"{type(error).__name__}: {error}".partition("\n")[0]}
        except KeyboardInterrupt:
            found[name] = {"failed": "interrupted"}
            raise
        finally:
            found[name]["seconds"] = round(time.monotonic() - begun, 1)
            _write(to, card)
        log.info("  %s", {key: value for key, value in found[name].items() if not isinstance(value, list)})
    return True


def _write(to: Path, card: Figures) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    building = to.with_suffix(".new")
    building.write_bytes(to_json(card))
    building.replace(to)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure for some minutes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--miniature", action="store_true")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    try:
        done = measure(MINIATURE if given.miniature else FULL, given.to, Deadline.after(given.minutes))
    except KeyboardInterrupt:
        return 1
    return 0 if done else TIME_IS_UP


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # torch may wait for its compiling processes at the end, for minutes
