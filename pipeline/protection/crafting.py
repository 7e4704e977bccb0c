"""The protection of the images of one shard: by the gradients of an ensemble, or by a function of the images alone.

Legend: B images, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from pipeline.config.schema import ProtectConfig
from pipeline.config.seeds import derive, generator
from pipeline.protection.checkpoints import Ensemble
from pipeline.protection.preparation_files import load_prepared
from pipeline.storage.folder import Folder
from sep.budget import Budget
from sep.craft import craft_in_parts
from sep.execution import MicroBatch, use_cpu
from sep.methods.request import Request
from sep.objective import choose_targets


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


def protect_images(task: CraftingTask, shard: str, images: Tensor, labels: Tensor, keys: Sequence[str]) -> Tensor:
    """Protect images of protected classes; return them as they are released, `(B, C, H, W)` uint8 on the CPU.

    Args:
        task: the arguments that the tasks of all shards share.
        shard: the name of the images' shard.
        images: clean ones, `(B, C, H, W)` uint8.
        labels: `(B,)`.
        keys: of the samples.

    Raises:
        ValueError: a checkpoint or the preparation was altered.
    """
    # Another number of threads, or another algorithm, can round sums differently; bytes must depend on neither.
    use_cpu(1)
    torch.backends.cudnn.deterministic = True
    if not len(labels):
        return images
    return _perturb(task, shard, images, labels, keys) if task.config.kind.perturb else _craft(task, images, labels, keys)


def _perturb(task: CraftingTask, shard: str, images: Tensor, labels: Tensor, keys: Sequence[str]) -> Tensor:
    """Protect images by a function of the images and the preparation."""
    config, seed, method = task.config, task.seed, task.config.method
    assert config.kind.perturb is not None
    request = Request(
        images,
        torch.searchsorted(torch.tensor(task.classes), labels),
        len(task.classes),
        [derive(seed, method, key) for key in keys],
        derive(seed, method),
        task.budget,
        load_prepared(task.prepared, task.prepared_sha256, shard) if task.prepared_sha256 else None,
    )
    return config.kind.perturb(request)


def _craft(task: CraftingTask, images: Tensor, labels: Tensor, keys: Sequence[str]) -> Tensor:
    """Protect images by the gradients of the ensemble, or at random."""
    config, ensemble = task.config, task.ensemble
    draws = torch.tensor([derive(task.seed, "target", key) for key in keys])
    drawn = generator(task.seed, "targets")
    targets = choose_targets(config.targets, labels, task.classes, drawn, draws) if config.kind.targets else labels
    means = load_prepared(task.prepared, task.prepared_sha256) if task.prepared_sha256 else None
    batch = _micro_batch(ensemble, config, tuple(images.shape[1:]))
    seeded = generator(task.seed, "craft", keys[0])
    return torch.cat(list(craft_in_parts(ensemble.members(means), images, targets, config, seeded, batch)))


@lru_cache(maxsize=1)  # a size at which memory ran out is not tried again for the next shard
def _micro_batch(ensemble: Ensemble, config: ProtectConfig, shape: tuple[int, ...]) -> MicroBatch:
    return MicroBatch.fitting(shape, ensemble.device) if config.batch_size == "auto" else MicroBatch(config.batch_size)
