"""Clean images that an adversary has besides the release, to learn from them how to purify it.

They are taken out of the training set, clean or protected, so that no network purifies what it has learned from. Like the clean images
of a dilution they are the run's own, because a packed data set need not have others of the same classes.

Legend: B images, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from pipeline.config.class_selection import protected_classes
from pipeline.config.schema import RunConfig
from pipeline.config.seeds import derive
from pipeline.shards.shard import Sample, read_shard
from pipeline.shards.tensors import Labelled, to_images
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Manifest, Shard
from pipeline.training.batches import InMemory, Split, Transform, transformed
from pipeline.training.clean_shares import choose, protected_labels
from sep.countermeasures.registry import Countermeasure, plan
from sep.pictures import one_size
from sep.views.own_size import whole_view

if TYPE_CHECKING:
    from pipeline.training.trial import VictimTask

BATCH = 32  # images that are learned from at a time


@dataclass(frozen=True)
class Without:
    """A reader of shards that leaves some samples out, by their keys."""

    keys: Collection[str]

    def __call__(self, folder: Folder, shard: Shard) -> list[Sample]:
        """Return the other samples of a shard.

        Raises:
            CorruptShard: the shard is not as recorded.
        """
        return [sample for sample in read_shard(folder, shard) if sample.key not in self.keys]


def known_keys(task: VictimTask, part: Countermeasure) -> frozenset[str]:
    """Choose the keys of the images that an adversary knows. They depend on the victim's seed, not on its network or countermeasure."""
    labels = protected_labels(task.run.child("pack"), task.release.shards["train"], task.protected)
    percent = part.known_percent or 100 * part.known_pairs / len(labels)  # choose rounds their number back to a whole one
    return choose(labels, percent, derive(task.run_seed, "known", task.trial.seed))


def known_images(task: VictimTask, part: Countermeasure, before: Transform, seed: int) -> InMemory:
    """Open the known images: clean ones with their labels, or protected ones with their clean form.

    Args:
        task: of the victim.
        part: for which they are known.
        before: the countermeasures that come first, which are applied to these images as well.
        seed: of the order of the batches.

    Raises:
        CorruptShard: a shard is not as recorded.
    """
    keys = known_keys(task, part)

    def seen(manifest: Manifest) -> tuple[Tensor, Tensor]:
        images, labels = _images(task, manifest, keys)
        changed = transformed(before, images, labels)
        return (one_size(changed) if task.input_size is None else whole_view(changed, task.input_size)), labels

    clean, labels = seen(task.pack)
    split = Split(min(BATCH, len(labels)), seed)
    return InMemory(seen(task.release)[0], clean, split) if part.known_pairs else InMemory(clean, labels, split)


def check_known_images(config: RunConfig, classes: Sequence[str], train: int, labels: Callable[[Collection[int]], Sized]) -> None:
    """Check, before anything is crafted, that images are known, and that enough others are left.

    Args:
        config: of the run.
        classes: names of all classes, in label order.
        train: number of training images.
        labels: gives those of the training images of some classes, by key; asked only where some are to be known.

    Raises:
        ValueError: none is known, or the others do not fill a batch.
    """
    parts = {name: plan(name).known for name in config.victim.countermeasures if "victim" in config.stages}
    for name, part in parts.items():
        if part is None:
            continue
        protected = len(labels(protected_classes(config, classes)))
        known = part.known_pairs or round(part.known_percent / 100 * protected)
        if not 0 < known <= protected or train - known < config.victim.batch_size:
            needed = f"at least one, and {config.victim.batch_size} others for a batch"
            raise ValueError(
                f"victim.countermeasures: {name} sets {known} of {protected} protected images aside, expected {needed}: name another number"
            )


def _images(task: VictimTask, manifest: Manifest, keys: Collection[str]) -> Labelled:
    folder = task.run.child(manifest.stage)
    samples = [sample for shard in manifest.shards["train"] for sample in read_shard(folder, shard) if sample.key in keys]
    return to_images(sorted(samples, key=lambda sample: sample.key), task.input_size)
