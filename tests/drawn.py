"""What is on a picture, read back from its pixels."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from pipeline.shards.pixels import Pixels


def decoded(png: bytes) -> Pixels:
    """Its levels, `(H, W, 3)`."""
    with Image.open(io.BytesIO(png)) as image:
        return np.array(image.convert("RGB"))


def share(pixels: Pixels, colour: str, tolerance: int = 12) -> float:
    """Share of the pixels that have a colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return float((np.abs(pixels.astype(int) - wanted).max(2) <= tolerance).mean())
