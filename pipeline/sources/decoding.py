"""Decoding of images of any kind to upright 8-bit RGB, and to one size.

Legend: images are `(H, W, 3)` uint8 arrays of grey levels 0..255.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.shards.pixels import Pixels

# Still images only. Some of Pillow's other formats start programs (EPS) or parse far more than an image.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm")  # by which they are known, in lower case


class Refused(ValueError):
    """The error for bytes that cannot be decoded as an image. The message says why, in one line."""


def decode(data: bytes, max_pixels: int) -> Pixels:
    """Return the first frame of an encoded image, upright, as 8-bit RGB. Transparent pixels are blended onto white.

    Args:
        data: the whole file.
        max_pixels: larger images are refused from their header, before anything is decoded.

    Returns:
        `(H, W, 3)` levels.

    Raises:
        Refused: the file is empty, of an unknown format, truncated, damaged or too large, or its levels have an unknown range.
    """
    if not data:
        raise Refused("zero bytes")
    try:
        with _pixel_limit(max_pixels), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except (Refused, MemoryError):  # too little memory is the machine's fault, not the image's
        raise
    except UnidentifiedImageError as error:
        raise Refused(f"not an image in one of the formats {', '.join(FORMATS)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Refused(f"more than the {max_pixels} pixels that pack.max-pixels allows") from error
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged input
        raise Refused(f"truncated or damaged: {type(error).__name__}: {error}".splitlines()[0]) from error


def fit(pixels: Pixels, size: int) -> Pixels:
    """Return the centre square at `size` x `size`: the short side is resized to `size`, the long side is cropped at both ends.

    Resized by Pillow's bicubic filter, which widens its kernel when shrinking and so does not alias. An image whose short
    side already has that length is only cropped.

    Args:
        pixels: `(H, W, 3)`.
        size: side in pixels.
    """
    height, width = pixels.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    square = pixels[top : top + short, left : left + short]  # crop first: a very long image must not grow before that
    if short == size:
        return np.ascontiguousarray(square)
    return np.array(Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC))


def _rgb(image: Image.Image) -> Pixels:
    """Return the `(H, W, 3)` levels of an image in any of Pillow's modes."""
    if image.mode == "F":
        raise Refused("floating-point levels have no known range: save as 8 or 16 bit")
    if image.mode.startswith("I"):  # 16-bit grey; a plain conversion would clip it at 255
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise Refused("integer levels beyond 16 bit have no known range: save as 8 or 16 bit")
        return np.repeat(((levels + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.array(image.convert("RGB"))


@contextmanager
def _pixel_limit(max_pixels: int) -> Iterator[None]:
    """Set Pillow's guard against huge images to our limit and make it an error. Silence its other warnings, which would fill the log."""
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before
