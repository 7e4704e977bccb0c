"""Pixels of one image: lossless PNG out, a stored file in, digest, and statistics."""

from __future__ import annotations

import hashlib
import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

Pixels = NDArray[np.uint8]
STARTS = {b"\x89PNG": "png", b"\xff\xd8": "jpg", b"RIFF": "webp"}  # of the files that shards hold
LEVELS = np.arange(256)
LAST_CHUNK = b"\0\0\0\0IEND\xaeB`\x82"
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def encode_png(pixels: Pixels, profile: bytes | None = None) -> bytes:
    """Return a lossless PNG of `(H, W, 3)` levels. With one version of Pillow the same pixels always give the same bytes.

    Args:
        pixels: the levels.
        profile: ICC profile that says which colours they mean; sRGB if not given.
    """
    stream = io.BytesIO()
    Image.fromarray(pixels, "RGB").save(stream, "png", icc_profile=profile)
    return stream.getvalue()


def colour_profile(data: bytes) -> bytes | None:
    """Return the ICC profile of an encoded image, if it has one that can be read and is of RGB levels."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            profile: bytes = image.info.get("icc_profile") or b""
    except Exception:  # what is beside the pixels may be damaged in any way
        return None
    return profile if profile[16:20] == b"RGB " else None


def extension(data: bytes) -> str:
    """Return the extension of a stored image: png, jpg or webp, by its first bytes."""
    return next((name for start, name in STARTS.items() if data.startswith(start)), "png")


def decode(data: bytes) -> Pixels:
    """Return the upright `(H, W, 3)` levels of a stored image: a PNG, or a JPEG or WebP file that is stored as it came.

    Raises:
        OSError, SyntaxError: the bytes are not a whole image.
    """
    with Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "WEBP"]) as image:
        return np.array(upright(image).convert("RGB"))


def upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF says. EXIF that cannot be read turns nothing."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # which damaged EXIF raises is not documented
        return image
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def decode_whole(data: bytes) -> Pixels:
    """Return the `(H, W, 3)` levels of a stored image, of a PNG after checking every chunk's checksum, which decoding alone skips.

    Raises:
        Exception: whatever damaged bytes make the decoder raise.
    """
    if extension(data) == "png":
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.verify()
        if not data.endswith(LAST_CHUNK):
            raise ValueError("broken end")
    return decode(data)


def pixels_sha256(pixels: Pixels) -> str:
    """Return the digest of an image's decoded levels (row by row, RGB), whatever its compression."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


class Statistics:
    """Count, sums and sums of squares per channel. They are integers, so the order in which they are combined does not matter."""

    def __init__(self) -> None:
        """Start with no pixels."""
        self.pixels, self.sums, self.squares = 0, [0, 0, 0], [0, 0, 0]

    def add(self, pixels: Pixels) -> None:
        """Add one image `(H, W, 3)`."""
        channels = pixels.reshape(-1, 3).T
        counts = np.stack([np.bincount(channel, minlength=len(LEVELS)) for channel in channels])
        self.merge([channels.shape[1], *(counts @ LEVELS).tolist(), *(counts @ LEVELS**2).tolist()])

    def merge(self, other: list[int]) -> None:
        """Add the statistics that `as_list` gave elsewhere."""
        self.pixels += other[0]
        self.sums = [a + b for a, b in zip(self.sums, other[1:4], strict=True)]
        self.squares = [a + b for a, b in zip(self.squares, other[4:], strict=True)]

    def as_list(self) -> list[int]:
        """Return the count, the three sums and the three sums of squares."""
        return [self.pixels, *self.sums, *self.squares]

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Return both per channel, in grey levels. Networks divide by the standard deviation, so that of a constant channel is 1."""
        n = self.pixels
        variances = [n * square - total**2 for square, total in zip(self.squares, self.sums, strict=True)]  # times n squared
        return [total / n for total in self.sums], [math.sqrt(variance) / n or 1.0 for variance in variances]
