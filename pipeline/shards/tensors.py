"""Samples as batches of tensors, in the order of the shards.

Legend: B images, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from pipeline.shards.pixels import Pixels
from pipeline.shards.shard import Sample, read_shard
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Shard

Batch = tuple[Tensor, Tensor]
Read = Callable[[Folder, Shard], list[Sample]]
TESTED_TOGETHER = 100  # images; with more, what lies between two layers is larger than the caches, and memory is asked for anew


def to_tensors(samples: Sequence[Sample]) -> Batch:
    """Decoded images and labels of samples of one size."""
    return stack([sample.pixels for sample in samples]), torch.tensor([sample.label for sample in samples])


def stack(images: Sequence[Pixels]) -> Tensor:
    """Images of one size, `(H, W, C)` each, as `(B, C, H, W)`."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def load(folder: Folder, shards: Sequence[Shard], read: Read = read_shard) -> Batch:
    """All images and labels of some shards, in order; `read` gives the samples of one.

    Raises:
        CorruptShard: a shard is not as recorded.
    """
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(lambda shard: to_tensors(read(folder, shard)), shards))
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def in_order(images: Tensor, labels: Tensor, size: int = TESTED_TOGETHER) -> Iterator[Batch]:
    """Every image once, for evaluation."""
    yield from zip(torch.split(images, size), torch.split(labels, size), strict=True)
