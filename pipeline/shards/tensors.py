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
from sep.pictures import Images, Pictures, joined, one_size
from sep.views.own_size import fixed_view

Batch = tuple[Tensor, Tensor]
Labelled = tuple[Images, Tensor]
Read = Callable[[Folder, Shard], list[Sample]]
TESTED_TOGETHER = 100  # images; with more, activations outgrow the caches, and memory is allocated anew for each batch


def to_tensors(samples: Sequence[Sample]) -> Batch:
    """Return the decoded images and the labels of samples of one size."""
    return stack([sample.pixels for sample in samples]), torch.tensor([sample.label for sample in samples])


def to_images(samples: Sequence[Sample], input_size: int | None) -> Labelled:
    """Return the decoded images and the labels of samples, with an input size as pictures of their own size."""
    if input_size is None:
        return to_tensors(samples)
    pictures = Pictures([stack([sample.pixels])[0] for sample in samples])
    return pictures, torch.tensor([sample.label for sample in samples])


def stack(images: Sequence[Pixels]) -> Tensor:
    """Return images of one size, `(H, W, C)` each, as `(B, C, H, W)`."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def load(folder: Folder, shards: Sequence[Shard], read: Read = read_shard) -> Batch:
    """Return all images, of one size, and labels of some shards, in order: see `load_images`."""
    images, labels = load_images(folder, shards, None, read)
    return one_size(images), labels


def load_images(folder: Folder, shards: Sequence[Shard], input_size: int | None, read: Read = read_shard) -> Labelled:
    """Return all images and labels of some shards, in order. `read` gives the samples of one shard.

    Raises:
        CorruptShard: a shard is not as recorded.
    """
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(lambda shard: to_images(read(folder, shard), input_size), shards))
    return joined([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def load_seen(folder: Folder, shards: Sequence[Shard], input_size: int | None) -> Batch:
    """Return all images of some shards as networks see them in tests, `(B, C, H, W)` uint8, and their labels, in order.

    Raises:
        CorruptShard: a shard is not as recorded.
    """

    def seen(shard: Shard) -> Batch:
        images, labels = to_images(read_shard(folder, shard), input_size)
        return fixed_view(images, input_size), labels

    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(seen, shards))
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def in_order(images: Tensor, labels: Tensor, size: int = TESTED_TOGETHER) -> Iterator[Batch]:
    """Yield every image once, in batches, for evaluation."""
    yield from zip(torch.split(images, size), torch.split(labels, size), strict=True)
