"""The training images of one victim, after the countermeasures that change stored images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from pipeline.config.seeds import generator
from pipeline.shards.shard import read_shard
from pipeline.shards.sizes import image_bytes
from pipeline.shards.tensors import Batch, Loading, Read
from pipeline.training.batches import Batches, Sight, Split, Transform, open_batches, unchanged, whole
from pipeline.training.clean_shares import Diluted, Repeated, clean_keys, protected_labels
from pipeline.training.known_images import Without, known_images, known_keys
from sep.countermeasures.registry import Countermeasure, Plan, stored_as
from sep.execution import moved
from sep.models import Network
from sep.pictures import Images
from sep.train_config import TrainConfig
from sep.views.own_size import fitted_at_input_size, training_view, whole_view

if TYPE_CHECKING:
    from pipeline.training.trial import VictimTask


class VictimImages:
    """The images, which each training of a victim opens as batches of its own."""

    def __init__(self, task: VictimTask, seed: int, device: torch.device, network: Network | None = None) -> None:
        """Find what the countermeasures make of the images. Those that are fitted to the images read them, as the ones before left them.

        Args:
            task: of the victim.
            seed: of the batches.
            device: for images in memory.
            network: of the victim before its training, for countermeasures that search with it.
        """
        self.task, self.seed, self.device = task, seed, device
        self.read, self.transform = _read(task), cast(Transform, unchanged)
        for part in (*stored_as(task.config.stored), *task.plan.on_images):
            self.transform = partial(_one_after_the_other, self.transform, self._step(part, network))

    def batches(self, config: TrainConfig) -> Batches:
        """Open the batches of a training; pictures of their own size are seen through windows, as its augmentation says."""
        side, seed = self.task.input_size, self.seed

        def sight(epoch: int) -> Callable[[Images], Tensor]:
            windows = generator(seed, "windows", epoch)
            return partial(training_view, side=side, augmentation=config.augmentation, generator=windows, threads=self.task.threads)

        return self._opened(config.batch_size, sight)

    def _opened(self, batch_size: int, sight: Sight) -> Batches:
        task = self.task
        return open_batches(
            task.run.child(task.train.stage),
            task.train.shards["train"],
            image_bytes(task.pack.counts) * bytes_per_value(task.plan),
            task.memory_limit_mb,
            Split(batch_size, self.seed),
            self.device,
            self.transform,
            self.read,
            loading(task),
            sight,
        )

    def _step(self, part: Countermeasure, network: Network | None) -> Transform:
        if part.stored:
            return partial(_whatever_class, part.on_stored)
        side, classes = self.task.input_size, len(self.task.pack.counts["classes"])
        if part is self.task.plan.known:
            seen: Batches = known_images(self.task, part, self.transform, self.seed)
        else:
            seen = self._opened(self.task.config.batch_size, whole if side is None else partial(_as_a_whole, side))
        epoch = partial(_on, self.device, seen)
        if part.fitted:
            step = part.fitted(epoch, classes)
            return step if side is None else fitted_at_input_size(step, side)
        assert part.searched
        assert network
        return partial(_whatever_class, part.searched(epoch, classes, network))


def _read(task: VictimTask) -> Read:
    """Return what reads a shard: the release as it is, or with a share of the images in their clean form."""
    plan, pack, packed = task.plan, task.run.child("pack"), task.pack.shards["train"]
    if plan.known:
        return Without(known_keys(task, plan.known))
    if not plan.clean_percent:
        return cast(Read, read_shard)
    labels = protected_labels(pack, task.train.shards["train"], task.protected)
    keys = clean_keys(labels, plan.clean_percent, task.run_seed, task.trial.seed)
    return Repeated.of(pack, packed, labels, keys) if plan.clean_only else Diluted(pack, packed, keys)


def loading(task: VictimTask) -> Loading:
    """Return the means of loading a victim's images."""
    return Loading(task.threads, cache_gb=task.cache_gb, input_size=task.input_size)


def bytes_per_value(plan: Plan) -> int:
    """Return the bytes that one stored value takes in memory: four where the countermeasure projects, else one."""
    return 4 if any(part.fitted for part in plan.on_images) else 1


def _on(device: torch.device, batches: Batches, epoch: int) -> Iterator[Batch]:
    """Yield the batches of an epoch on the device, where a countermeasure learns from them."""
    return ((moved(images, device), moved(labels, device)) for images, labels in batches.epoch(epoch))


def _as_a_whole(side: int, _: int) -> Callable[[Images], Tensor]:
    return partial(whole_view, side=side)


def _one_after_the_other(first: Transform, second: Transform, images: Tensor, labels: Tensor) -> Tensor:
    return second(first(images, labels), labels)


def _whatever_class(change: Callable[[Tensor], Tensor], images: Tensor, _: Tensor) -> Tensor:
    return change(images)
