"""Samples as batches of tensors, in the order of the shards.

Legend: B images, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_png

from pipeline.shards.decoded_cache import DecodedCache
from pipeline.shards.pixels import Pixels
from pipeline.shards.shard import Sample, read_shard
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Shard
from sep.pictures import Images, Pictures, joined, one_size
from sep.views.own_size import fixed_view

Batch = tuple[Tensor, Tensor]
Labelled = tuple[Images, Tensor]
Read = Callable[[Folder, Shard], list[Sample]]
Each = Callable[[Callable[[Sequence[Sample]], Tensor], Sequence[Sequence[Sample]]], Iterable[Tensor]]  # `map`, or that of a pool
TESTED_TOGETHER = 100  # images; with more, activations outgrow a CPU's caches, and memory is allocated anew for each batch
TESTED_PIXELS = 2**20  # on a GPU: 1,024 images of 32 x 32, for it is done with a hundred small ones before the host has launched the next
DECODED_TOGETHER = 25  # images, by one thread
READ_TOGETHER = 4  # shards


@dataclass(frozen=True)
class Loading:
    """The means of loading shards.

    Attributes:
        threads: that decode. The codec leaves the interpreter to others.
        cache: of decoded shards.
        cache_gb: gigabytes of the cache that streamed shards have.
        input_size: of networks that see pictures of their own size, as which all are then loaded.
    """

    threads: int = 2
    cache: DecodedCache | None = None
    cache_gb: float = 0.0
    input_size: int | None = None

    @property
    def streamed(self) -> Loading:
        """The means of loading shards again and again: with this machine's cache."""
        return self if self.cache else replace(self, cache=DecodedCache.of_this_machine(self.cache_gb))


PLAIN_LOADING = Loading()


def to_tensors(samples: Sequence[Sample], each: Each = map) -> Batch:
    """Return the decoded images and the labels of samples of one size. `each` applies a function to parts of them."""
    parts = [samples[at : at + DECODED_TOGETHER] for at in range(0, len(samples), DECODED_TOGETHER)]
    return torch.cat(list(each(_decoded, parts))), torch.tensor([sample.label for sample in samples])


def _decoded(samples: Sequence[Sample]) -> Tensor:
    encoded = (torch.frombuffer(bytearray(sample.image), dtype=torch.uint8) for sample in samples)
    return torch.stack([decode_png(png, ImageReadMode.RGB) for png in encoded]).contiguous()  # at 32 pixels half of Pillow's time


def to_images(samples: Sequence[Sample], input_size: int | None, each: Each = map) -> Labelled:
    """Return the decoded images and the labels of samples, with an input size as pictures of their own size."""
    if input_size is None:
        return to_tensors(samples, each)
    pictures = [picture[0] for picture in each(_of_any_size, [[sample] for sample in samples])]
    return Pictures(pictures), torch.tensor([sample.label for sample in samples])


def _of_any_size(samples: Sequence[Sample]) -> Tensor:
    return stack([sample.pixels for sample in samples])


def stack(images: Sequence[Pixels]) -> Tensor:
    """Return images of one size, `(H, W, C)` each, as `(B, C, H, W)`."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def load(folder: Folder, shards: Sequence[Shard], read: Read = read_shard, loading: Loading = PLAIN_LOADING) -> Batch:
    """Return all images, of one size, and labels of some shards, in order: see `load_images`."""
    images, labels = load_images(folder, shards, read, loading)
    return one_size(images), labels


def load_seen(folder: Folder, shards: Sequence[Shard], loading: Loading = PLAIN_LOADING) -> Batch:
    """Return all images of some shards as networks see them in tests, `(B, C, H, W)` uint8, and their labels, in order.

    Raises:
        CorruptShard: a shard is not as recorded.
    """
    if loading.input_size is None:
        return load(folder, shards, loading=loading)
    parts: list[Batch] = []
    for shard in shards:  # one at a time: what is seen is smaller
        images, labels = load_images(folder, [shard], loading=loading)
        parts.append((fixed_view(images, loading.input_size, loading.threads), labels))
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def load_images(folder: Folder, shards: Sequence[Shard], read: Read = read_shard, loading: Loading = PLAIN_LOADING) -> Labelled:
    """Return all images and labels of some shards, in order.

    Args:
        folder: of the shards.
        shards: as the manifest records them.
        read: gives the samples of a shard. Only what `read_shard` gives is kept in the cache: others' samples are not in the digest.
        loading: on how many threads, and with which cache.

    Raises:
        CorruptShard: a shard is not as recorded.
    """
    with ThreadPoolExecutor(READ_TOGETHER) as readers, ThreadPoolExecutor(loading.threads) as decoders:
        cache = loading.cache if read is read_shard else None

        def loaded(shard: Shard) -> Labelled:
            name = f"{shard.sha256}-own-size" if loading.input_size else shard.sha256  # where all are of one size, both may be asked for
            if cache and (kept := cache.read(name)):
                return kept
            images, labels = to_images(read(folder, shard), loading.input_size, decoders.map)
            if cache:
                cache.write(name, images, labels)
            return images, labels

        parts = list(readers.map(loaded, shards))
    return joined([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def in_order(images: Tensor, labels: Tensor, device: torch.device) -> Iterator[Batch]:
    """Yield every image once, in batches, for evaluation on a device."""
    size = max(TESTED_TOGETHER, TESTED_PIXELS // images.shape[2:].numel()) if device.type == "cuda" else TESTED_TOGETHER
    yield from zip(torch.split(images, size), torch.split(labels, size), strict=True)
