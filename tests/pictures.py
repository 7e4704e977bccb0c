"""Small pictures and the files they are written to, for tests; no two rows, columns or channels alike."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.shards.pixels import Pixels


def picture(seed: int = 0, height: int = 8, width: int = 8) -> Pixels:
    """Random levels `(H, W, 3)`."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image | Pixels, kind: str = "png", **options: Any) -> bytes:
    """The bytes of an image file."""
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, kind, **options)
    return stream.getvalue()


def raw_png(width: int, height: int, depth: int, colour: int, row: bytes) -> bytes:
    """A PNG of equal rows, of any bit depth and colour type, never held decoded: how a decompression bomb is made."""
    deflate = zlib.compressobj(1)
    body = b"".join(deflate.compress(b"\0" + row) for _ in range(height)) + deflate.flush()

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def write(path: Path, content: bytes) -> None:
    """A file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def class_folders(root: Path, classes: dict[str, int], prefix: str = "", size: int = 8) -> None:
    """`<root>/<prefix><class>/<number>.png`, so many of each class."""
    for c, (name, images) in enumerate(classes.items()):
        for i in range(images):
            write(root / f"{prefix}{name}" / f"{i}.png", encoded(picture(1000 * c + i + len(prefix), size, size)))
