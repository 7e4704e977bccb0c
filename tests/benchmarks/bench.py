"""The speed of crafting, measured against a plain loop on this machine, and the table of docs/performance.md.

python -m tests.benchmarks.bench                  measure into tests/benchmarks/speed.json; a few minutes on two cores, which should be idle
python -m tests.benchmarks.bench table            write the table into docs/performance.md

--quick: seconds, proves that it works and measures nothing. --compiled: torch.compile as well (on a GPU always). --to FILE: another card.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from cluster import session
from cluster.processes import cpus
from pipeline.results.machine import hardware
from pipeline.storage.records import to_json
from sep.execution import use_cpu
from tests.benchmarks import agreement, loader, memory, rates, stored_size, whole_stage
from tests.benchmarks.tables import PERFORMANCE
from tests.benchmarks.trained import Trained, device, train

CARD = Path(__file__).parent / "speed.json"
BEGIN, END = "<!-- speed: made by tests/benchmarks/bench.py -->", "<!-- end of speed -->"
STAGE_SECONDS = 40  # of crafting, so that a stage's start and end do not decide its rate
STREAMING = (
    "Seconds are those of the processor. A data set beyond `--memory-limit-mb` streams: shards are decoded on all cores of a rank, two "
    "groups ahead of the network. Later epochs read decoded images from the machine's disk, up to `--cache-gb`. The GPU's figure is "
    "measured at 32 x 32 (see [below](#on-a-gpu)), and scaled by the operations of the network at the other size."
)
BUSY = 1.0  # load average before the start; above it, other work distorts the figures

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Load:
    """The work for one network."""

    training_images: int
    checkpoints: int  # also the number of epochs
    images: int  # crafted in one repetition
    repetitions: int
    agreeing_images: int
    agreeing_steps: int


@dataclass(frozen=True)
class Scale:
    """The extent of the measurement; the first network is the small one, for which everything is measured."""

    loads: dict[str, Load]
    batch_size: int  # of the plain loop, as in the paper's training
    batches: tuple[int, ...]  # other sizes for the plain loop, for comparison
    shards: tuple[int, ...]  # read a worker's memory after this many shards
    streamed: tuple[tuple[int, int, int, int], ...]  # arguments of `loader.measure`


STREAMED = (8, 250, 32, 3), (4, 100, 224, 3)
QUICK = Scale({"resnet8": Load(80, 2, 16, 1, 16, 3)}, 16, (8, 16), (1, 2), ((2, 20, 16, 1),))
CPU = Scale({"resnet8": Load(2000, 5, 128, 5, 64, 10), "resnet18": Load(500, 2, 128, 5, 32, 4)}, 128, (32, 64, 256), (4, 8, 16), STREAMED)
GPU = Scale(
    {"resnet8": Load(10000, 5, 2048, 5, 64, 10), "resnet18": Load(2000, 5, 2048, 3, 256, 10)}, 128, (256, 2048), (4, 8, 16), STREAMED
)


def variants(compiled: bool) -> list[str]:
    """Return the variants to compare on this machine."""
    if device().type == "cuda":
        return ["fused, float32", "fused, tf32", "fused, bf16", "compiled, bf16"]
    return ["plain kernels, float32", "fused, float32", "fused, bf16", *(["compiled, float32"] if compiled else [])]


def speeds(trained: Trained, load: Load, scale: Scale, names: Sequence[str]) -> dict[str, Any]:
    """Measure gradients per second of one network, with all cores and with one, as in a task of the pipeline."""
    log.info("%s: gradients per second", trained.name)
    images, repeat = load.images, load.repetitions
    found: dict[str, Any] = {"against_plain": rates.against_plain(trained, images, scale.batch_size, rates.METHODS, repeat)}
    if device().type == "cpu" and torch.get_num_threads() > 1:
        with rates.threads(1):
            found["against_plain"] += rates.against_plain(trained, images, scale.batch_size, ["sep-fa"], max(1, repeat - 1))
    found["own_size"] = stored_size.measure(trained.name, min(images, stored_size.IMAGES), max(1, repeat - 1))
    found["by_views"] = rates.by_views(trained, images, max(1, repeat - 1))
    small = trained.name == next(iter(scale.loads))
    if small:
        sizes = sorted({*scale.batches, scale.batch_size})
        found["plain_by_batch"] = rates.by_batch(trained, max(sizes), sizes, repeat)
        found["by_memory"] = rates.by_memory(trained, images, repeat)
        found["growth"] = rates.growth(trained, 2 * images, repeat)
    if small or device().type == "cuda":  # on a CPU the large network takes a minute for each
        found["by_variant"] = rates.by_variant(trained, images, names, repeat)
    log.info("%s: agreement with the plain loop", trained.name)
    found["agreement"] = agreement.measure(trained, load.agreeing_images, load.agreeing_steps, names)
    return found


def steps_for(trained: Trained, found: dict[str, Any], quick: bool) -> int:
    """Return the outer steps that keep the protect stage busy for long enough."""
    row = found["against_plain"][-1]
    workers = 1 if device().type == "cuda" else cpus()
    rate = row["ours"] * (workers if row["threads"] == 1 else 1)
    return 2 if quick else max(2, math.ceil(STAGE_SECONDS * rate / (len(trained.images) * len(trained.networks))))


def measure(quick: bool, compiled: bool) -> dict[str, Any]:
    """Measure everything, and return the card."""
    scale = QUICK if quick else GPU if device().type == "cuda" else CPU
    names = variants(compiled)
    use_cpu(torch.get_num_threads())
    loaded = os.getloadavg()[0]
    if loaded > BUSY and not quick:
        log.warning("this machine is busy (load average %.1f): the figures will be of no use to anyone", loaded)
    card: dict[str, Any] = {
        "hardware": hardware(),
        "versions": {name: version(name) for name in ("torch", "torchvision", "ray")},
        "threads": torch.get_num_threads(),
        "load_average_before": round(loaded, 1),
        "networks": {},
    }
    log.info("streaming")
    card["loader"] = {"hardware": hardware(), "rows": [loader.measure(*arguments) for arguments in scale.streamed]}
    for name, load in scale.loads.items():
        log.info("%s: training %d checkpoints on %d images", name, load.checkpoints, load.training_images)
        trained = train(name, load.training_images, load.checkpoints)
        card["networks"][name] = found = speeds(trained, load, scale, names)
        log.info("%s: memory", name)
        found["memory"] = memory.crafting(trained, scale.batch_size, scale.batch_size)
        if "stage" not in card:
            card |= stage(trained, steps_for(trained, found, quick), scale.shards, quick)
    return card


def stage(trained: Trained, steps: int, shards: tuple[int, ...], quick: bool) -> dict[str, Any]:
    """Measure the protect stage of the small network, and the memory of its worker."""
    log.info("%s: the protect stage, %d steps", trained.name, steps)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        prepared = whole_stage.prepare(Path(folder), trained, steps)
        measured = whole_stage.measure(prepared)
        return {
            "stage": measured,
            "images_per_second_by_workers": whole_stage.by_workers(prepared, measured),
            "worker_mib_after_shards": whole_stage.worker_memory(prepared, shards),
            "recipes": whole_stage.by_recipe(prepared, quick),
        }


def table(card: dict[str, Any]) -> str:
    """Return the section of docs/performance.md: gradients per second, the stage and its memory, and the agreement."""
    lines = ["| network, 32x32 | method | threads | plain loop, gradients/s | with `backward()` | ours | ratios | convolutions alone |"]
    lines += ["|" + "---|" * 8]
    lines += [
        f"| {row['network']} | {row['method']} | {row['threads']} | {row['plain']:,.0f} | {row['plain_backward']:,.0f} | "
        f"**{row['ours']:,.0f}** | {row['ratio']:.2f}, {row['ratio_backward']:.2f} | "
        f"{row['convolutions_alone']:,.0f} ({row['ratio_bound']:.2f}) |"
        for found in card["networks"].values()
        for row in found["against_plain"]
    ]
    whole, held = card["stage"], card["worker_mib_after_shards"]
    by_workers = card["images_per_second_by_workers"]
    besides = whole["ray_start_seconds"] + whole["other_seconds"]
    lines += [
        "",
        "The first ratio compares us with the plain loop that asks for the gradients of the pixels alone. The second compares us with the "
        "loop that calls `loss.backward()`, as tutorials do. The last column is a yardstick: the rate of torch's convolutions called one "
        "by one, if everything between them took no time. Its own ratio to the plain loop follows in parentheses.",
        "",
        f"Measured on {card['hardware']}, with torch {card['versions']['torch']}.",
        "",
        f"- **The whole protect stage** ({whole['workers']} workers, {whole['network']}) crafts {whole['stage_images_per_second']:,.1f} "
        f"images/s, {whole['ratio']:.2f} of the rate of as many bare processes{_alone(by_workers)}. Starting Ray, the class means and "
        f"the tables take another {besides:.0f} s.",
        *([f"- **Recipes**: the whole stage protects {_recipes(card['recipes'])}."] if "recipes" in card else []),
        "- **Memory** of crafting, beyond the libraries and the ensemble: "
        + "; ".join(f"{name} {_memory(found['memory'])}" for name, found in card["networks"].items())
        + ". A worker of the stage holds "
        + ", ".join(f"{value:.0f} MiB after {count} shards" for count, value in sorted(held.items(), key=lambda item: int(item[0])))
        + ".",
        "",
        *(
            ["### Streaming", "", *loader.table(card["loader"]["rows"]), "", f"{STREAMING} Measured on {card['loader']['hardware']}.", ""]
            if "loader" in card
            else []
        ),
        "### Agreement with the plain loop",
        "",
        "Both loops follow the same trained checkpoints. Steps go by the sign of the gradient, so the last bit of a gradient near 0 can "
        "show in the finished image. The row of plain kernels differs from the plain loop in nothing but the order of sums: it shows how "
        "much of the disagreement is noise. Whether the victims notice is in the [table of kernels](results.md#arithmetic-of-crafting).",
        "",
        *_agreement(card),
    ]
    return "\n".join(lines)


def _agreement(card: dict[str, Any]) -> list[str]:
    """Return the table of agreement with the plain loop."""
    return [
        "| network | our arithmetic | equal signs of the first gradients | equal values of the finished images |",
        "|" + "---|" * 4,
        *(
            f"| {row['network']} | {row['variant']} | {row['equal_signs']:.2%} | {row['equal_values']:.1%} after {row['steps']} steps, "
            f"{row['checkpoints']} checkpoints |"
            for found in card["networks"].values()
            for row in found["agreement"]
        ),
    ]


def _alone(rates: dict[str, dict[str, float]]) -> str:
    """Return the same rates with one worker, if the stage has several."""
    if len(rates["stage"]) < 2:
        return ""
    stage, bare = rates["stage"]["1"], rates["bare"]["1"]
    return f" (with one worker {stage:,.1f}, {stage / bare:.2f} of one bare process)"


def _recipes(rows: list[dict[str, Any]]) -> str:
    """Return the rates of the recipes, and how many times as fast the last is as the first."""
    shown = [
        f"{row['images_per_second']:,.1f} images/s by {row['method']} ({row['gradients_per_image']} gradients an image, "
        f"{row['crafting_images_per_second']:,.1f} images/s of crafting alone)"
        for row in rows
    ]
    return f"{' and '.join(shown)}, {rows[-1]['images_per_second'] / rows[0]['images_per_second']:.1f} times as many"


def _memory(found: dict[str, dict[str, float]]) -> str:
    plain, ours = (found[kind].get("gpu_peak_mib") or found[kind]["peak_mib"] - found[kind]["loaded_mib"] for kind in ("plain", "ours"))
    return f"{ours:.0f} MiB, the plain loop {plain:.0f}"


def details(card: dict[str, Any]) -> str:
    """Return the rest of the card, for printing after a measurement."""
    lines = []
    for name, found in card["networks"].items():
        lines += [
            f"{name}, plain loop by batch: {rate:,.0f} gradients/s at {size}" for size, rate in found.get("plain_by_batch", {}).items()
        ]
        if "own_size" in found:
            lines += [f"{name}, photographs of 500 x 375 at their own size: {found['own_size']['ratio']:.2f} of the gradients/s at 64 x 64"]
        lines += [f"{name}, through {view}: {rate:,.0f} gradients/s" for view, rate in found.get("by_views", {}).items()]
        lines += [f"{name}, freed memory {how}: {rate:,.0f} gradients/s" for how, rate in found.get("by_memory", {}).items()]
        lines += [f"{name}, {variant}: {rate:,.0f} gradients/s" for variant, rate in found.get("by_variant", {}).items()]
        lines += [
            f"{name}, {row['variant']} against plain: {row['equal_signs']:.2%} of first signs, {row['equal_values']:.2%} of values after "
            f"{row['steps']} steps equal"
            for row in found["agreement"]
        ]
        lines += [
            f"{name}, {series}: {point['images']} images, {point['checkpoints']} checkpoints, {point['steps']} steps: "
            f"{point['seconds']:.2f} s, {point['microseconds_per_gradient']:.0f} us per gradient"
            for series, points in found.get("growth", {}).items()
            for point in points
        ]
    return "\n".join(lines)


def with_table(text: str, card: dict[str, Any]) -> str:
    """Return the page with the table as the card has it."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table(card)}\n{END}{rest.split(END)[1]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("measure", "table"), default="measure")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--to", type=Path, default=CARD)
    given = parser.parse_args(arguments)
    if given.what == "table":
        PERFORMANCE.write_text(with_table(PERFORMANCE.read_text(), json.loads(given.to.read_text())))
        return 0
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr, force=True)
    try:
        card = measure(given.quick, given.compiled)
    finally:
        session.close()
    flags = "".join(f" --{name}" for name in ("quick", "compiled") if getattr(given, name))
    given.to.write_bytes(to_json({"command": f"python -m tests.benchmarks.bench{flags}", **card}))
    print(table(card), details(card), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
