"""The request of one shard: its images, and whatever the method may look at to protect them.

Legend: B images, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from pipeline.config.schema import ProtectConfig
from pipeline.config.seeds import derive, generator
from pipeline.protection.checkpoints import Ensemble
from pipeline.protection.preparation_files import load_prepared
from pipeline.storage.folder import Folder
from sep.budget import Budget
from sep.execution import MicroBatch, use_cpu
from sep.methods.request import Request, protect
from sep.objective import choose_targets
from sep.pictures import Images, seen_shape


@dataclass(frozen=True, kw_only=True)
class CraftingTask:
    """The arguments that the tasks of all shards share."""

    ensemble: Ensemble
    config: ProtectConfig
    seed: int
    made_from: str
    classes: tuple[int, ...]  # labels that are protected
    clean: Folder  # where the clean shards are
    out: Folder  # where the protected ones go
    prepared: Folder  # of the protect stage that holds the preparation
    prepared_sha256: str  # digest of the preparation; empty where the method needs none
    budget: Budget  # of each image
    chosen: str = ""  # digest of the keys that are protected; empty for all of the classes


def protect_images(task: CraftingTask, shard: str, images: Images, labels: Tensor, keys: Sequence[str]) -> Images:
    """Protect images of protected classes; return them as they are released, in the same form, on the CPU.

    Args:
        task: the arguments that the tasks of all shards share.
        shard: the name of the images' shard.
        images: clean ones, `(B, C, H, W)` uint8, or pictures of their own size.
        labels: `(B,)`.
        keys: of the samples.

    Raises:
        ValueError: a checkpoint or the preparation was altered.
    """
    # Another number of threads, or another algorithm, can round sums differently; bytes must depend on neither.
    use_cpu(1)
    torch.backends.cudnn.deterministic = True
    return protect(_request(task, shard, images, labels, keys)) if len(labels) else images


def _request(task: CraftingTask, shard: str, images: Images, labels: Tensor, keys: Sequence[str]) -> Request:
    """Everything that the method may look at."""
    config, seed, method = task.config, task.seed, task.config.method
    of_images = task.prepared_sha256 and not config.aligns_features  # class means are the members'
    request = Request(
        images=images,
        classes=torch.searchsorted(torch.tensor(task.classes), labels),
        num_classes=len(task.classes),
        seeds=[derive(seed, method, key) for key in keys],
        seed=derive(seed, method),
        budget=task.budget,
        prepared=load_prepared(task.prepared, task.prepared_sha256, shard) if of_images else None,
        config=config,
        generator=generator(seed, "craft", keys[0]),
        view_draws=generator(seed, "views"),
        input_size=task.ensemble.input_size,
    )
    if not config.kind.surrogate:
        return request
    draws = torch.tensor([derive(seed, "target", key) for key in keys])
    drawn = generator(seed, "targets")
    return replace(
        request,
        members=task.ensemble.members(load_prepared(task.prepared, task.prepared_sha256) if config.aligns_features else None),
        views=task.ensemble.views,
        targets=choose_targets(config.targets, labels, task.classes, drawn, draws) if config.kind.targets else labels,
        batch=_micro_batch(task.ensemble, config, seen_shape(images, task.ensemble.input_size)),
    )


@lru_cache(maxsize=1)  # a size at which memory ran out is not tried again for the next shard
def _micro_batch(ensemble: Ensemble, config: ProtectConfig, shape: tuple[int, ...]) -> MicroBatch:
    return MicroBatch.fitting(shape, ensemble.device, config.batch_size, config.kernels)
