"""The training images of one victim, after the countermeasures that change stored images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from pipeline.config.seeds import generator
from pipeline.shards.decoded_cache import DecodedCache
from pipeline.shards.shard import read_shard
from pipeline.shards.sizes import image_bytes
from pipeline.shards.tensors import Loading, Read
from pipeline.training.batches import Batches, Split, Transform, open_batches, unchanged
from pipeline.training.clean_shares import Diluted, Repeated, clean_keys, protected_labels
from sep.countermeasures.preprocessing import as_stored
from sep.countermeasures.registry import Countermeasure, Plan
from sep.models import Network
from sep.pictures import Images
from sep.train_config import TrainConfig
from sep.views.own_size import training_view

if TYPE_CHECKING:
    from pipeline.training.trial import VictimTask


class VictimImages:
    """The images, which each training of a victim opens as batches of its own."""

    def __init__(self, task: VictimTask, seed: int, device: torch.device, network: Network) -> None:
        """Find what the countermeasures make of the images. Those that are fitted to the images read them, as the ones before left them.

        Args:
            task: of the victim.
            seed: of the batches.
            device: for images in memory.
            network: before its training.
        """
        self.task, self.seed, self.device = task, seed, device
        self.read, self.transform = _read(task), cast(Transform, unchanged)
        for part in task.plan.on_images:
            self.transform = partial(_one_after_the_other, self.transform, self._step(part, network))

    def batches(self, config: TrainConfig) -> Batches:
        """Open the batches of a training; pictures of their own size are seen through windows, as its augmentation says."""
        task, side, seed = self.task, self.task.input_size, self.seed

        def sight(epoch: int) -> Callable[[Images], Tensor]:
            return partial(training_view, side=side, augmentation=config.augmentation, generator=generator(seed, "windows", epoch))

        return open_batches(
            task.run.child(task.train.stage),
            task.train.shards["train"],
            image_bytes(task.pack.counts) * bytes_per_value(task.plan),
            task.memory_limit_mb,
            Split(config.batch_size, seed),
            self.device,
            self.transform,
            self.read,
            loading(task),
            sight,
        )

    def _step(self, part: Countermeasure, network: Network) -> Transform:
        if part.stored:
            return partial(_whatever_class, part.on_stored)
        epoch, classes = self.batches(replace(self.task.config, augmentation="none")).epoch, len(self.task.pack.counts["classes"])
        if part.fitted:
            return part.fitted(epoch, classes)
        assert part.searched is not None
        found = part.searched(epoch, classes, network)
        return partial(_whatever_class, lambda images: found(as_stored(images)))


def _read(task: VictimTask) -> Read:
    """Return what reads a shard: the release as it is, or with a share of the images in their clean form."""
    plan, pack, packed = task.plan, task.run.child("pack"), task.pack.shards["train"]
    if not plan.clean_percent:
        return cast(Read, read_shard)
    labels = protected_labels(pack, task.train.shards["train"], task.protected)
    keys = clean_keys(labels, plan.clean_percent, task.run_seed, task.trial.seed)
    return Repeated.of(pack, packed, labels, keys) if plan.clean_only else Diluted(pack, packed, keys)


def loading(task: VictimTask) -> Loading:
    """Return the means of loading a victim's images."""
    return Loading(task.threads, DecodedCache.of_this_machine(task.cache_gb), task.input_size)


def bytes_per_value(plan: Plan) -> int:
    """Return the bytes that one stored value takes in memory: four where the countermeasure projects, else one."""
    return 4 if any(part.fitted for part in plan.on_images) else 1


def _one_after_the_other(first: Transform, second: Transform, images: Tensor, labels: Tensor) -> Tensor:
    return second(first(images, labels), labels)


def _whatever_class(change: Callable[[Tensor], Tensor], images: Tensor, _: Tensor) -> Tensor:
    return change(images)
