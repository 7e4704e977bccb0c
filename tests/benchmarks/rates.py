"""Gradients per second of the plain loop and of the library, measured in turns, and growth of the time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sep.choices import Kernels, Precision
from sep.craft import Method
from sep.craft_config import CraftConfig
from sep.ensemble import freeze
from sep.execution import MicroBatch, backends, resolve
from sep.views.registry import kinds
from tests.benchmarks import plain
from tests.benchmarks.apart import apart
from tests.benchmarks.trained import Trained, device
from tests.benchmarks.turns import in_turns

METHODS: tuple[Method, ...] = ("sep", "sep-fa", "sep-fa-vr")
CONVOLUTIONS = "convolutions_alone"
MIX = ("none", "jpeg-10", "jpeg-50", "blur", "gray")
VIEWS = ("none", "jpeg-10", "webp-75", "blur", "bits-2", "gray", "warp", "noise-4", "band-drop", "resize-crop")
# Other modes of the library, beside its default.
VARIANTS: dict[str, tuple[Kernels, Precision]] = {
    "plain kernels, float32": ("plain", "float32"),
    "fused, float32": ("fused", "float32"),
    "fused, tf32": ("fused", "tf32"),
    "fused, bf16": ("fused", "bf16"),
    "compiled, float32": ("compiled", "float32"),
    "compiled, bf16": ("compiled", "bf16"),
}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with that many threads inside the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def gradients(method: Method, images: int, members: int, steps: int = 1) -> int:
    """Return the number of gradients that crafting takes."""
    return images * CraftConfig(method=method, steps=steps, checkpoints=members).gradients_per_image(members)


def against_plain(trained: Trained, images: int, batch_size: int, methods: Sequence[Method], repetitions: int) -> list[dict[str, Any]]:
    """Measure gradients per second of both loops in turns, one row per method; `batch_size` is that of the plain loop."""
    contenders: dict[str, Callable[[], object]] = {CONVOLUTIONS: convolutions_alone(trained, images)}
    with apart(trained, torch.get_num_threads()) as other:
        for method in methods:
            contenders[f"{method} plain"] = partial(other.craft, method, images, batch_size)
            contenders[f"{method} plain_backward"] = partial(other.craft, method, images, batch_size, plain.backward)
            contenders[f"{method} ours"] = partial(trained.craft, trained.members(method), method, images, 1)
        seconds = in_turns(contenders, repetitions)
    bound = round(images / seconds[CONVOLUTIONS], 1)

    def row(method: Method) -> dict[str, Any]:
        count = gradients(method, images, len(trained.networks))
        rates = {name: round(count / seconds[f"{method} {name}"], 1) for name in ("plain", "plain_backward", "ours")}
        return {
            "network": trained.name,
            "method": method,
            "threads": torch.get_num_threads(),
            "plain_batch": batch_size,
            **rates,
            CONVOLUTIONS: bound,
            "ratio": round(rates["ours"] / rates["plain"], 2),
            "ratio_backward": round(rates["ours"] / rates["plain_backward"], 2),
            "ratio_bound": round(bound / rates["plain"], 2),
        }

    return [row(method) for method in methods]


def convolutions_alone(trained: Trained, images: int, precision: Precision = "auto") -> Callable[[], object]:
    """Return a function that computes only the convolutions of a gradient: the limit of a loop whose other work takes no time.

    They round as those of the library do in that precision.
    """
    precision = resolve(precision, device())
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    network = freeze(trained.networks[0], "compiled").to(device(), dtype)  # folded, with torch's own convolutions
    shape = trained.images.shape[1:]
    size = min(images, MicroBatch.fitting(shape, device()).size)
    calls: list[tuple[nn.Conv2d, Tensor, Tensor]] = []

    def note(module: nn.Conv2d, given: tuple[Tensor], output: Tensor) -> None:
        calls.append((module, given[0].clone(memory_format=torch.channels_last), torch.randn_like(output)))

    hooks = [module.register_forward_hook(note) for module in network.modules() if isinstance(module, nn.Conv2d)]
    with torch.no_grad():
        network(trained.images[:size].to(device(), dtype, memory_format=torch.channels_last))
    for hook in hooks:
        hook.remove()

    def run() -> None:
        with torch.no_grad(), backends(precision):
            for _ in range(images // size):
                for conv, x, back in calls:
                    conv(x)
                    both = conv.stride, conv.padding, conv.dilation
                    torch.ops.aten.convolution_backward(back, x, conv.weight, None, *both, False, [0, 0], conv.groups, [True, False, False])

    return run


def by_batch(trained: Trained, images: int, sizes: Sequence[int], repetitions: int) -> dict[str, float]:
    """Measure gradients per second of the plain loop (feature alignment) by batch size: the gain of a good choice."""
    with apart(trained, torch.get_num_threads()) as other:
        seconds = in_turns({str(size): partial(other.craft, "sep-fa", images, size) for size in sizes}, repetitions)
    return {size: round(gradients("sep-fa", images, len(trained.networks)) / value, 1) for size, value in seconds.items()}


def by_variant(trained: Trained, images: int, names: Sequence[str], repetitions: int) -> dict[str, float]:
    """Measure gradients per second of the library (feature alignment) by kernels and precision."""
    contenders: dict[str, Callable[[], object]] = {}
    for name in names:
        kernels, precision = VARIANTS[name]
        contenders[name] = partial(trained.craft, trained.members("sep-fa", kernels), "sep-fa", images, 1, precision, kernels)
    seconds = in_turns(contenders, repetitions)
    return {name: round(gradients("sep-fa", images, len(trained.networks)) / value, 1) for name, value in seconds.items()}


def by_views(trained: Trained, images: int, repetitions: int) -> dict[str, float]:
    """Measure gradients per second of the library (feature alignment) through each view alone, and through the mix of `MIX`."""
    plain_members = trained.members("sep-fa")
    contenders: dict[str, Callable[[], object]] = {}
    for name, views in {**{name: (name,) for name in VIEWS}, "mix": MIX}.items():
        members = [replace(member, view=view) for member in plain_members for view in kinds(views)]
        contenders[name] = partial(trained.craft, members, "sep-fa", images, 1, views=views)
    seconds = in_turns(contenders, repetitions)
    return {name: round(gradients("sep-fa", images, len(trained.networks)) / value, 1) for name, value in seconds.items()}


def by_memory(trained: Trained, images: int, repetitions: int) -> dict[str, float]:
    """Measure gradients per second of the library (feature alignment), with reuse of freed memory, as in workers, and without."""
    with apart(trained, torch.get_num_threads()) as other:
        contenders: dict[str, Callable[[], object]] = {
            "kept": partial(trained.craft, trained.members("sep-fa"), "sep-fa", images, 1),
            "given back": partial(other.ours, "sep-fa", images),
        }
        seconds = in_turns(contenders, repetitions)
    return {name: round(gradients("sep-fa", images, len(trained.networks)) / value, 1) for name, value in seconds.items()}


def growth(trained: Trained, images: int, repetitions: int) -> dict[str, list[dict[str, float]]]:
    """Measure seconds, and microseconds per gradient, of feature alignment as images, checkpoints and steps double twice."""
    most = len(trained.networks)
    points = {
        "images": [(images // 4, most, 2), (images // 2, most, 2), (images, most, 2)],
        "checkpoints": [(images // 2, max(1, most // 4), 2), (images // 2, max(1, most // 2), 2), (images // 2, most, 2)],
        "steps": [(images // 2, most, 1), (images // 2, most, 2), (images // 2, most, 4)],
    }
    contenders: dict[str, Callable[[], object]] = {}
    for count, n, steps in {point for series in points.values() for point in series}:
        contenders[f"{count} {n} {steps}"] = partial(trained.craft, trained.members("sep-fa", count=n), "sep-fa", count, steps)
    seconds = in_turns(contenders, repetitions)

    def measured(count: int, n: int, steps: int) -> dict[str, float]:
        took = seconds[f"{count} {n} {steps}"]
        each = 1e6 * took / gradients("sep-fa", count, n, steps)
        return {"images": count, "checkpoints": n, "steps": steps, "seconds": round(took, 3), "microseconds_per_gradient": round(each, 1)}

    return {name: [measured(*point) for point in series] for name, series in points.items()}
