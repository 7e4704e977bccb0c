"""A data set that stays on one device as decoded images, read from Parquet files as data hubs publish them.

Legend: B images, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

IMAGE_NAMES = ("img", "image")
ROWS = 1000  # read and decoded at a time


@dataclass(frozen=True)
class Split:
    """Images `(B, 3, H, W)` uint8 and their labels `(B,)` int64, on one device."""

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Split:
        """The same on another device."""
        return Split(self.images.to(device), self.labels.to(device))

    def in_order(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches as they lie."""
        return zip(torch.split(self.images, batch_size), torch.split(self.labels, batch_size), strict=True)

    def shuffled(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches in an order drawn from `generator`, which is on the CPU; the last may be smaller."""
        order = torch.randperm(len(self.labels), generator=generator).to(self.labels.device)
        for rows in torch.split(order, batch_size):
            yield self.images[rows], self.labels[rows]


def files_of(folder: Path, split: str) -> list[Path]:
    """The Parquet files of a split, in the order of their names.

    Raises:
        ValueError: there are none.
    """
    files = sorted(folder.glob(f"{split}-*.parquet"))
    if not files:
        raise ValueError(f"{folder} has no {split}-*.parquet: --data needs a folder with train-*.parquet and test-*.parquet")
    return files


def digest(folder: Path) -> str:
    """SHA-256 over the Parquet files of both splits: tells data sets apart, wherever they lie.

    Raises:
        ValueError: a split has no files.
    """
    total = hashlib.sha256()
    for path in [*files_of(folder, "train"), *files_of(folder, "test")]:
        with path.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def read(folder: Path, split: str, limit: int | None) -> Split:
    """The first `limit` images of a split, or all of them, decoded as RGB on the CPU.

    Raises:
        ValueError: a file is missing, damaged or has other columns; an image cannot be decoded or differs in size.
    """
    images: list[Tensor] = []
    labels: list[int] = []
    for path in files_of(folder, split):
        try:
            with pq.ParquetFile(path) as parquet:
                image = _image_column(parquet.schema_arrow, path)
                # Not by threads: one of pyarrow's may release its buffer while the interpreter exits, and abort it.
                for rows in parquet.iter_batches(ROWS, columns=[f"{image}.bytes", "label"], use_threads=False):
                    for encoded, label in zip(rows[image].to_pylist(), rows["label"].to_pylist(), strict=True):
                        if len(images) == limit:
                            return _stack(images, labels)
                        images.append(_decode((encoded or {}).get("bytes"), f"{path} row {len(images)} of the split"))
                        labels.append(label)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path} is not a whole Parquet file: {error}") from error
    return _stack(images, labels)


def _image_column(schema: pa.Schema, path: Path) -> str:
    if "label" in schema.names and pa.types.is_integer(schema.field("label").type):
        for name in IMAGE_NAMES:
            if name in schema.names and pa.types.is_struct(schema.field(name).type):
                return name
    found = ", ".join(f"{field.name}: {field.type}" for field in schema)
    raise ValueError(f"{path}: expected `img` or `image` (struct of bytes and path) and `label` (integer), found {found}")


def _decode(encoded: bytes | None, where: str) -> Tensor:
    if not encoded:
        raise ValueError(f"{where}: there is no image")
    try:
        pixels: Tensor = decode_image(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), ImageReadMode.RGB)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{where}: the image cannot be decoded: {error}") from error
    return pixels


def _stack(images: list[Tensor], labels: list[int]) -> Split:
    sizes = {tuple(image.shape) for image in images}
    if len(sizes) != 1:
        raise ValueError(f"all images must have one size, and there must be some; found {sorted(sizes) or 'none'}")
    if None in labels or min(labels) < 0:
        raise ValueError("labels must be whole numbers from 0; some are missing or negative")
    return Split(torch.stack(images), torch.tensor(labels))


def statistics(images: Tensor) -> dict[str, Any]:
    """Exact mean and standard deviation of each channel of `(B, C, H, W)` uint8, in levels."""
    levels = torch.arange(256, dtype=torch.float64)
    shares = [torch.bincount(channel.flatten(), minlength=256).double() / channel.numel() for channel in images.unbind(1)]
    means = [float(share @ levels) for share in shares]
    deviations = [float(share @ (levels - mean).square()) ** 0.5 for share, mean in zip(shares, means, strict=True)]
    return {"mean": means, "std": deviations}
