"""Shards as training batches: small data sets decoded once into memory, large ones streamed, the same number on every rank.

Legend: B images, C channels, H W pixels. Batches are uint8 images `(B, C, H, W)` and int64 labels `(B,)`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from pipeline.config.seeds import generator
from pipeline.shards.shard import read_shard
from pipeline.shards.tensors import PLAIN_LOADING, Batch, Labelled, Loading, Read, in_order, load_images, load_seen
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Shard
from sep.execution import moved
from sep.pictures import Images, Pictures, joined, mapped, one_size

Transform = Callable[[Tensor, Tensor], Tensor]  # images and labels to other images
Sight = Callable[[int], Callable[[Images], Tensor]]  # for an epoch, maps images to what networks see of them

MIXED_SHARDS = 4  # read together and shuffled, so that a streamed batch mixes several shards
GROUPS_AHEAD = 2  # of so many shards, that are decoded while the ones before are trained on
BATCHES_AHEAD = 4  # ready to be copied to a GPU
TRANSFORMED_TOGETHER = 1000  # stored images that a countermeasure changes at a time


def whole(_: int) -> Callable[[Images], Tensor]:
    """See images of one size as they are, in every epoch."""
    return one_size


class Batches(Protocol):
    """The training batches of one rank."""

    @property
    def steps(self) -> int:
        """Batches in an epoch, the same number on every rank."""

    def epoch(self, number: int) -> Iterator[Batch]:
        """Open the batches of an epoch; the same number always gives the same batches."""


@dataclass(frozen=True)
class Split:
    """One rank's part of an epoch: rank `rank` of `size`, each with `batch_size` images a step."""

    batch_size: int
    seed: int
    rank: int = 0
    size: int = 1


class InMemory:
    """Batches of images in memory; each rank takes its part of one common permutation.

    Pictures of their own size are cut and resized on the CPU, ahead of the network.
    """

    def __init__(self, images: Images, labels: Tensor, split: Split, sight: Sight = whole, pinned: bool = False) -> None:
        """Hold the images; with `pinned`, batches that are made ahead lie in memory that a GPU copies from by itself.

        Raises:
            ValueError: the images do not fill one batch on every rank.
        """
        self.images, self.labels, self.split, self.sight, self.pinned = images, labels, split, sight, pinned
        self.steps = _steps(len(labels) // split.size, split.batch_size)

    def epoch(self, number: int) -> Iterator[Batch]:
        """See `Batches`."""
        batches = self._epoch(number)
        return batches if isinstance(self.images, Tensor) else _ahead(batches, self.pinned)

    def _epoch(self, number: int) -> Iterator[Batch]:
        seen = self.sight(number)
        order = torch.randperm(len(self.labels), generator=generator(self.split.seed, "order", number))
        mine = moved(order[self.split.rank :: self.split.size], self.labels.device)
        for step in range(self.steps):
            chosen = mine[step * self.split.batch_size : (step + 1) * self.split.batch_size]
            yield seen(self.images[chosen]), self.labels[chosen]


class Streaming:
    """Batches of shards that are read on demand. Each epoch deals them to the ranks anew, mixes several and reads the next ones ahead."""

    def __init__(
        self,
        folder: Folder,
        shards: Sequence[Shard],
        split: Split,
        transform: Transform,
        read: Read = read_shard,
        loading: Loading = PLAIN_LOADING,
        pinned: bool = False,
        sight: Sight = whole,
    ) -> None:
        """Plan the epochs, and read nothing yet; with `pinned`, batches lie in memory that a GPU copies from by itself.

        Raises:
            ValueError: the shards are fewer than the ranks, or do not fill one batch on every rank.
        """
        if len(shards) < split.size:
            raise ValueError(f"{len(shards)} shards cannot be dealt to {split.size} ranks: pack with a smaller --pack.shard-images")
        self.folder, self.shards, self.split, self.transform, self.read = folder, list(shards), split, transform, read
        self.loading, self.pinned, self.sight = loading, pinned, sight
        # Shards differ in size and every epoch deals them anew: take the steps that any dealing allows.
        smallest = sum(sorted(shard.count for shard in shards)[: len(shards) // split.size])
        self.steps = _steps(smallest, split.batch_size)

    def epoch(self, number: int) -> Iterator[Batch]:
        """See `Batches`."""
        return _ahead(self._epoch(number), self.pinned)

    def _load(self, shards: Sequence[Shard]) -> Labelled:
        return load_images(self.folder, shards, self.read, self.loading)

    def _epoch(self, number: int) -> Iterator[Batch]:
        seen = self.sight(number)
        draw = generator(self.split.seed, "order", number)
        mine = torch.randperm(len(self.shards), generator=draw).tolist()[self.split.rank :: self.split.size]
        groups = [[self.shards[i] for i in mine[at : at + MIXED_SHARDS]] for at in range(0, len(mine), MIXED_SHARDS)]
        shuffle = generator(self.split.seed, "mix", number, self.split.rank)
        rest: Labelled | None = None
        left = self.steps
        with ThreadPoolExecutor(GROUPS_AHEAD) as reader:
            reading = deque(reader.submit(self._load, group) for group in groups[:GROUPS_AHEAD])
            for following in range(GROUPS_AHEAD, len(groups) + GROUPS_AHEAD):
                images, labels = reading.popleft().result()
                reading.extend(reader.submit(self._load, group) for group in groups[following : following + 1])
                images = transformed(self.transform, images, labels)
                if rest is not None:
                    images, labels = joined([rest[0], images]), torch.cat([rest[1], labels])
                order = torch.randperm(len(labels), generator=shuffle)
                full = min(left, len(labels) // self.split.batch_size)
                for chosen in torch.split(order[: full * self.split.batch_size], self.split.batch_size):
                    yield seen(images[chosen]), labels[chosen]
                left -= full
                if left == 0:
                    return
                kept = order[full * self.split.batch_size :]
                rest = images[kept], labels[kept]


def _ahead(batches: Iterator[Batch], pinned: bool) -> Iterator[Batch]:
    """Yield batches that another thread makes while the ones before are used, in pinned memory if asked for."""

    def following() -> Batch | None:
        batch = next(batches, None)
        return (batch[0].pin_memory(), batch[1].pin_memory()) if batch and pinned else batch

    with ThreadPoolExecutor(1) as maker:
        making = deque(maker.submit(following) for _ in range(BATCHES_AHEAD))
        try:
            while (batch := making.popleft().result()) is not None:
                making.append(maker.submit(following))
                yield batch
        finally:
            maker.shutdown(cancel_futures=True)  # nobody waits for more


def _steps(images: int, batch_size: int) -> int:
    """Return the number of full batches: 390 of 128 for 50,000 images.

    The paper does not say what happens to the remaining images. Common reference code trains on them as a smaller, 391st batch. Here
    they are left out, so that ranks agree on their steps and batch-norm never sees a handful of images. Every epoch has its own order,
    so an image misses only a few epochs.
    """
    if images < batch_size:
        raise ValueError(f"{images} training images per rank do not fill a batch of {batch_size}: lower the batch size or the workers")
    return images // batch_size


def unchanged(images: Tensor, _: Tensor) -> Tensor:
    """Return the images as they are."""
    return images


def transformed(transform: Transform, images: Images, labels: Tensor) -> Images:
    """Return images after a transform of tensors, pictures of their own size one by one."""
    return transform(images, labels) if isinstance(images, Tensor) else mapped(transform, images, Pictures(list(labels)))


def open_tests(
    folder: Folder,
    shards: Sequence[Shard],
    image_bytes: float,
    memory_limit_mb: int,
    device: torch.device,
    loading: Loading = PLAIN_LOADING,
) -> Callable[[], Iterator[Batch]]:
    """Return a function that opens all images once, in order, as networks see them in tests.

    They come from memory of the device where they fit decoded, else shard by shard.
    """
    if fits(shards, 3 * loading.input_size**2 if loading.input_size else image_bytes, memory_limit_mb):
        images, labels = (part.to(device) for part in load_seen(folder, shards, replace(loading, cache=None)))
        return lambda: in_order(images, labels, device)
    loading = loading.streamed
    return lambda: _ahead(
        (batch for shard in shards for batch in in_order(*load_seen(folder, [shard], loading), device)), pinned=device.type == "cuda"
    )


def fits(shards: Sequence[Shard], image_bytes: float, memory_limit_mb: int) -> bool:
    """Return whether the decoded images fit in memory; larger sets are streamed, which mixes their images less."""
    return sum(shard.count for shard in shards) * image_bytes <= memory_limit_mb * 1e6


def open_batches(
    folder: Folder,
    shards: Sequence[Shard],
    image_bytes: float,
    memory_limit_mb: int,
    split: Split,
    device: torch.device,
    transform: Transform = unchanged,
    read: Read = read_shard,
    loading: Loading = PLAIN_LOADING,
    sight: Sight = whole,
) -> Batches:
    """Open batches from memory where the decoded images fit, else streamed.

    Args:
        folder: of the shards.
        shards: as the manifest records them.
        image_bytes: size of one decoded image.
        memory_limit_mb: memory that the images may take.
        split: this rank's part.
        device: for the images held in memory.
        transform: applied once to uint8 images `(B, C, H, W)` and their labels, each image by itself, before training on them.
        read: returns the samples of a shard.
        loading: on how many threads images are decoded, and the cache of streamed ones; pictures of their own size stay on the CPU.
        sight: how networks see images in an epoch.

    Raises:
        ValueError: the images do not fill one batch on every rank.
    """
    if not fits(shards, image_bytes, memory_limit_mb):
        return Streaming(folder, shards, split, transform, read, loading.streamed, device.type == "cuda", sight)
    images, labels = load_images(folder, shards, read, replace(loading, cache=None))
    if transform is not unchanged:  # some at a time: to blur all at once would take many times their memory
        parts = (slice(start, start + TRANSFORMED_TOGETHER) for start in range(0, len(labels), TRANSFORMED_TOGETHER))
        images = joined([transformed(transform, images[part], labels[part]) for part in parts])
    if isinstance(images, Tensor):
        images, labels = images.to(device), labels.to(device)
    return InMemory(images, labels, split, sight, device.type == "cuda")
