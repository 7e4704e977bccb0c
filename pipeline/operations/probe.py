"""The speed of one worker while all of them work, from which a plan is computed.

Legend: B images, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cluster.work import own_gpu
from pipeline.config.schema import RunConfig
from pipeline.config.sight import packed_at_own_size
from pipeline.shards.pixels import Pixels, encode_png
from pipeline.shards.tensors import stack
from pipeline.sources import decoding
from pipeline.sources.dataset import Entry, Reader, SourceError
from sep.budget import project
from sep.craft import gradient
from sep.ensemble import Member, freeze
from sep.execution import MicroBatch, arithmetic, resolve, to_device, use_cpu
from sep.fitting import confusion, optimiser, train_epoch
from sep.models import Network, build
from sep.pictures import Pictures
from sep.views.mix import each_its_own
from sep.views.own_size import fixed_view
from sep.views.registry import PLAIN, kinds

LOOKED_AT = 64  # images of the source, as they come
LONGEST_SHARE = 0.5  # of the time for one figure, that a single step may take


@dataclass(frozen=True)
class Images:
    """Some images of a source, their sizes, and the speed of packing them.

    Attributes:
        pixels: `(B, C, H, W)` uint8, as networks would see them.
        per_second: images read, decoded and encoded by one CPU.
        released_per_second: protected images encoded, and decoded beside their originals for the check, by one CPU.
        clean_bytes: of an image as it would be packed.
        protected_bytes: of one that is changed by the whole budget, which compresses worse.
    """

    pixels: Tensor
    per_second: float
    released_per_second: float
    clean_bytes: float
    protected_bytes: float


@dataclass(frozen=True)
class Step:
    """Seconds of one step of some kind: `fixed`, and `each` image."""

    fixed: float
    each: float

    def seconds(self, count: float) -> float:
        """Return the seconds of a step of `count` images."""
        return self.fixed + self.each * count


@dataclass(frozen=True)
class Speed:
    """One worker's speed, by network."""

    gradients: dict[str, float]  # per second
    training: dict[str, Step]
    evaluation: dict[str, float]  # images per second


def look(entries: Sequence[Entry], reader: Reader, config: RunConfig) -> Images:
    """Read, decode and encode a few images as the pack stage does.

    Raises:
        SourceError: none of them is an image, or they differ in size without an input size.
    """
    begun, decoded, clean = time.perf_counter(), [], 0
    for _, content in reader.read(entries):
        try:
            found = decoding.decode(content, config.pack.max_pixels) if isinstance(content, bytes) else content
        except decoding.Refused:
            continue
        decoded.append(decoding.fit(found, config.pack.size) if config.pack.size else found)
        own = isinstance(content, bytes) and packed_at_own_size(config)
        clean += len(decoding.stored(bytes(content), found) if own else encode_png(decoded[-1]))
    seconds = time.perf_counter() - begun
    sizes = {pixels.shape for pixels in decoded}
    if not sizes or (len(sizes) > 1 and config.input_size is None):
        raise SourceError(f"images must have one size, found {len(sizes)} among {len(entries)}: give --input-size or --pack.size")
    changed = [_changed(pixels, config.protect.eps_levels) for pixels in decoded]
    begun = time.perf_counter()
    encoded = [encode_png(pixels) for pixels in changed]
    for content in (*encoded, *encoded):
        decoding.decode(content, sys.maxsize)
    coding = time.perf_counter() - begun
    pictures = Pictures([stack([pixels])[0] for pixels in decoded])
    seen = fixed_view(pictures, config.input_size) if config.input_size else stack(decoded)
    count = len(decoded)
    return Images(seen, count / seconds, count / coding, clean / count, sum(map(len, encoded)) / count)


def coding_rate(side: int) -> float:
    """Return the small images, so many pixels a side, that one CPU of this machine decodes and encodes per second."""
    noise: Pixels = torch.randint(256, (side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    encoded = encode_png(noise)
    return LOOKED_AT / best(lambda: [encode_png(decoding.decode(encoded, side * side)) for _ in range(LOOKED_AT)], 0.0)


def _changed(pixels: Pixels, eps_levels: int) -> Pixels:
    clean = torch.from_numpy(pixels).float()
    signs = torch.randint(2, clean.shape, generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    changed: Pixels = project(clean + eps_levels * signs, clean, eps_levels).to(torch.uint8).numpy()
    return changed


def measure(pixels: Tensor, config: RunConfig, num_classes: int, gpu: bool, seconds: float) -> Speed:
    """Measure a worker's speed for about so many seconds. This is the body of a task; each worker runs one.

    Args:
        pixels: `(B, C, H, W)` uint8.
        config: of the run.
        num_classes: K.
        gpu: whether to compute on one.
        seconds: for all figures together.
    """
    use_cpu(1)
    device = torch.device("cuda", own_gpu()) if gpu else torch.device("cpu")
    names = trained(config)
    if gpu:  # which is as fast as it can be only when it has a whole shard at a time
        pixels = pixels.repeat(math.ceil(config.pack.shard_images / len(pixels)), 1, 1, 1)[: config.pack.shard_images]
    share = seconds / (2 * len(names) + len(config.surrogate.networks))
    gradients: dict[str, float] = {}
    training: dict[str, Step] = {}
    evaluation: dict[str, float] = {}
    for name in names:
        network = fresh(name, pixels, num_classes).to(device)
        labels = torch.arange(len(pixels)) % num_classes
        if name in config.surrogate.networks:
            frozen, means, seen = freeze(network, config.protect.kernels), _means(network, num_classes, config), kinds(config.views)
            most = min(len(pixels), MicroBatch.fitting(pixels.shape[1:], device).size)
            batch = to_device(pixels[:most], frozen.mean, config.protect.kernels)
            with arithmetic(device, resolve(config.protect.precision, device)):
                each = {
                    view.name: ramp(partial(_gradient, Member(frozen, means, view), batch, labels.to(device)), most, share / len(seen)).each
                    for view in seen
                }
            gradients[name] = len(config.views) / sum(each[view] for view in config.views)
        section = config.surrogate if name in config.surrogate.networks else config.victim
        training_config = replace(section, schedule="step", warmup_epochs=0)
        views = config.views if section is config.surrogate else PLAIN
        step = partial(_train, network.to(memory_format=torch.channels_last), training_config, views, pixels, labels)
        training[name] = ramp(step, len(pixels), share)
        evaluation[name] = 1 / ramp(partial(_evaluate, network, pixels, labels, num_classes), len(pixels), share).each
    return Speed(gradients, training, evaluation)


def scaled(gradients_per_second: float, pixels: Tensor, config: RunConfig, num_classes: int) -> Speed:
    """Return the speed of a worker whose gradients per second alone are known. The rest follows from each network's arithmetic.

    A training step takes a half more than a gradient with respect to the pixels, an evaluation half of it.
    """
    work = {name: flops(fresh(name, pixels, num_classes), pixels[:1]) for name in trained(config)}
    rates = {name: gradients_per_second * work[config.surrogate.networks[0]] / work[name] for name in work}
    training = {name: Step(0, 1.5 / rate) for name, rate in rates.items()}
    return Speed({name: rates[name] for name in config.surrogate.networks}, training, {name: 2 * rate for name, rate in rates.items()})


def trained(config: RunConfig) -> list[str]:
    """Return the networks that a run trains, each once."""
    victims = config.victim.networks if "victim" in config.stages else ()
    return list(dict.fromkeys((*config.surrogate.networks, *victims)))


def flops(network: Network, pixels: Tensor) -> float:
    """Return the floating-point operations of a forward pass of these images."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network.eval()(pixels.float())
    return float(counter.get_total_flops())


def fresh(name: str, pixels: Tensor, num_classes: int) -> Network:
    """Return a new network of this kind for images like these."""
    return build(name, num_classes, min(pixels.shape[2:]), [127.0] * 3, [64.0] * 3)


def ramp(step: Callable[[int], Any], most: int, seconds: float) -> Step:
    """Time `step(count)` for counts that double up to `most`, or as far as time allows, and fit a line through the last two."""
    count, points = min(most, 1), []
    while True:
        points.append((count, best(partial(step, count), seconds / 8)))
        if count == most or points[-1][1] > LONGEST_SHARE * seconds:
            break
        count = min(most, 2 * count)
    if len(points) == 1:
        return Step(0, points[0][1] / points[0][0])
    (fewer, less), (more, longer) = points[-2:]
    each = max((longer - less) / (more - fewer), longer / more / 2)  # noise must not make images free
    return Step(max(0.0, longer - each * more), each)


def best(call: Callable[[], Any], seconds: float) -> float:
    """Return the shortest time of several calls that take about so many seconds together. The first call does not count."""
    call()
    taken: list[float] = []
    while not taken or sum(taken) < seconds:
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return min(taken)


def _means(network: Network, num_classes: int, config: RunConfig) -> Tensor | None:
    return torch.zeros(num_classes, network.head.in_features, device=network.mean.device) if config.protect.aligns_features else None


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _gradient(member: Member, batch: Tensor, labels: Tensor, count: int) -> None:
    gradient(member, batch[:count], labels[:count])
    _wait(batch.device)


def _train(network: Network, config: Any, views: Sequence[str], pixels: Tensor, labels: Tensor, count: int) -> None:
    sgd, scheduler = optimiser(network, config, 1)
    images = each_its_own(pixels[:count].to(network.mean.device), views, torch.Generator())
    train_epoch(network, sgd, scheduler, [(images, labels[:count])], config.augmentation, torch.Generator(), config.precision)


def _evaluate(network: Network, pixels: Tensor, labels: Tensor, num_classes: int, count: int) -> None:
    confusion(network, [(pixels[:count], labels[:count])], num_classes)
