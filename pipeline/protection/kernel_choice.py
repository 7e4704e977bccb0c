"""The kernels of a release: with `--protect.kernels auto` the faster ones, measured once on the GPU that computes."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cluster.executor import Executor
from cluster.work import Capacity, Work, describe
from pipeline.config.schema import ProtectConfig
from pipeline.protection.checkpoints import Ensemble, load_networks
from pipeline.shards.tensors import Loading, load_seen
from pipeline.storage.folder import Folder
from pipeline.storage.layout import KERNELS
from pipeline.storage.records import to_json
from pipeline.storage.stage import Shard
from sep.choices import Kernels
from sep.craft import gradient
from sep.ensemble import Member
from sep.execution import MicroBatch, arithmetic, moved, to_device, use_cpu

log = logging.getLogger(__name__)
CALLS = 10  # gradients of a whole shard that are timed


@dataclass(frozen=True)
class Pace:
    """The seconds until the first gradients of a shard are there, and those that each further time takes."""

    first: float
    further: float

    def total(self, calls: float) -> float:
        """Return the seconds of so many calls."""
        return self.first + self.further * calls


def decide(
    folder: Folder, config: ProtectConfig, ensemble: Ensemble, shards: list[Shard], executor: Executor, capacity: Capacity, workers: int
) -> Kernels:
    """Return the kernels for all shards, so that a release never mixes two, whenever it goes on.

    Args:
        folder: of the stage, where a measurement is stored.
        config: of the release, with the precision that was decided.
        ensemble: the checkpoints, if the method reads any.
        shards: clean ones.
        executor: where images are protected.
        capacity: for one task a shard.
        workers: tasks at a time.

    Raises:
        WorkFailed: the GPU did not compute.
    """
    if config.kernels != "auto":
        return config.kernels
    if not ensemble.gpu or not ensemble.checkpoints:
        return "fused"
    if not folder.exists(KERNELS):
        piece = Work("kernels", (config, ensemble, shards[0]))
        paces = dict(executor.run_all(measure, [piece], what="kernels", unit="GPUs", capacity=capacity))["kernels"]
        calls = len(shards) / workers * config.gradients_per_image(len(ensemble.checkpoints))
        chosen = faster(paces, calls)
        log.info("protect: %s kernels, of %s", chosen, ", ".join(f"{name} ({pace.further:.4f} s a shard)" for name, pace in paces.items()))
        folder.write(KERNELS, to_json({"kernels": chosen, "seconds": {name: vars(pace) for name, pace in paces.items()}}))
    kept: Kernels = json.loads(folder.read(KERNELS))["kernels"]
    return kept


def faster(paces: dict[Kernels, Pace], calls: float) -> Kernels:
    """Return the kernels that take less time for so many calls, their compilation included."""
    return min(paces, key=lambda name: paces[name].total(calls))


def measure(config: ProtectConfig, ensemble: Ensemble, shard: Shard) -> dict[Kernels, Pace]:
    """Measure gradients of one checkpoint on a clean shard. This is the body of a task. Kernels that cannot be compiled are left out."""
    use_cpu(1)
    images, labels = load_seen(ensemble.run.child("pack"), [shard], Loading(input_size=ensemble.input_size))
    kinds: tuple[Kernels, ...] = ("fused", "compiled")
    paces: dict[Kernels, Pace] = {}
    for kernels in kinds:
        try:
            paces[kernels] = _pace(replace(ensemble, checkpoints=ensemble.checkpoints[:1], kernels=kernels), config, images, labels)
        except Exception as error:
            if kernels == "fused":
                raise
            log.warning("protect: without compiled kernels, which this machine cannot make: %s", describe(error))
    return paces


def _pace(ensemble: Ensemble, config: ProtectConfig, images: Tensor, labels: Tensor) -> Pace:
    (network,) = load_networks(ensemble)
    device = ensemble.device
    levels, targets = to_device(images, network.mean, ensemble.kernels), moved(labels, device)
    batch = MicroBatch.fitting(images.shape[1:], device, config.batch_size, ensemble.kernels)

    def seconds(calls: int) -> float:
        begun = time.monotonic()
        with arithmetic(device, config.precision):
            for _ in range(calls):
                for _ in batch.run(lambda part: gradient(member, levels[part], targets[part]), len(levels)):
                    pass
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.monotonic() - begun

    member = Member(network)
    first = seconds(1)
    seconds(2)
    return Pace(first, seconds(CALLS) / CALLS)
