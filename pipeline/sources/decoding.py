"""Decoding of images of any kind to upright 8-bit RGB, and to one size.

Legend: images are `(H, W, 3)` uint8 arrays of grey levels 0..255.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT, TiffImageFile

from pipeline.shards.pixels import Pixels, colour_profile, decode_whole, encode_png, upright
from pipeline.sources.content import LONGEST, described
from pipeline.sources.metadata import without_metadata

# Still images only. Some of Pillow's other formats start programs (EPS) or parse far more than an image.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
KEPT = ("PNG", "JPEG", "WEBP")  # of them, the formats that everything opens
IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm")  # by which they are known, in lower case
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MIN_IS_WHITE, SIGNED = 0, 2  # values of tags of a TIFF


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
        raise Refused("zero bytes: fetch it again, or embed it if its table has a path alone")
    try:
        with _pixel_limit(max_pixels):
            return _decoded_anyway(data)
    except (Refused, MemoryError):  # too little memory is the machine's fault, not the image's
        raise
    except UnidentifiedImageError as error:
        if data.startswith(TIFF):
            raise Refused("a TIFF with levels that are not understood: save as 8 or 16 bit") from error
        what = described(data[:LONGEST])
        raise Refused(f"not an image in one of the formats {', '.join(FORMATS)}" + (f", but {what}" if what else "")) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Refused(f"more than the {max_pixels} pixels that pack.max-pixels allows") from error
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged input
        raise Refused(f"truncated or damaged: {type(error).__name__}: {error}".splitlines()[0]) from error


def pixels_in(data: bytes) -> int:
    """Return the number of pixels of an encoded image by its header alone; 0 if that cannot be read."""
    try:
        with _pixel_limit(sys.maxsize), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.width * image.height
    except Exception:  # perhaps of what is beside the pixels; an image that is refused tells its reason when it is decoded
        less = without_metadata(data)
        return 0 if less is None else pixels_in(less)


def stored(data: bytes, pixels: Pixels) -> bytes:
    """Return the bytes in which a picture of its own size is stored: the file itself if it is exact, or else a PNG.

    A file is exact if it is a whole still of 8-bit RGB, as PNG, JPEG or WebP, and decodes here to just these levels.

    Args:
        data: the whole file.
        pixels: from `decode`, `(H, W, 3)`.
    """
    try:
        with _pixel_limit(sys.maxsize):
            exact = _is_plain(data) and np.array_equal(decode_whole(data), pixels)
    except MemoryError:
        raise
    except Exception:  # of what is beside the pixels: `decode` did without it
        exact = False
    return data if exact else encode_png(pixels, colour_profile(data))


def _is_plain(data: bytes) -> bool:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        still = image.format in KEPT and image.mode == "RGB" and getattr(image, "n_frames", 1) == 1
        deep = image.format == "PNG" and data[24] > 8
        return still and not deep and not image.has_transparency_data


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


def _decoded_anyway(data: bytes) -> Pixels:
    """Decode an image, if need be without what is beside its pixels."""
    try:
        return _decoded(data)
    except (Refused, MemoryError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise
    except Exception:  # perhaps only of what is beside the pixels
        if (less := without_metadata(data)) is None:
            raise
        return _decoded_anyway(less)


def _decoded(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        image.load()
        if image.format == "PNG":
            _scale_transparency(image, depth=data[24])
        return _rgb(upright(image))


def _scale_transparency(image: Image.Image, depth: int) -> None:
    """Bring the transparent colour of a PNG to the range of its levels: Pillow leaves it in that of the file, of `depth` bits."""
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and depth == 16:
        raise Refused("16-bit colours with a transparent one cannot be read exactly: save as 8 bit, or with an alpha channel")
    if isinstance(clear, int) and image.mode in ("1", "L"):
        image.info["transparency"] = clear * 255 // (2**depth - 1)


def _rgb(image: Image.Image) -> Pixels:
    """Return the `(H, W, 3)` levels of an image in any of Pillow's modes."""
    if image.mode == "F":
        raise Refused("floating-point levels have no known range: save as 8 or 16 bit")
    if image.mode == "LAB":
        raise Refused("L*a*b* colours have no single conversion to RGB: save as RGB")
    if isinstance(image, TiffImageFile) and SIGNED in image.tag_v2.get(SAMPLEFORMAT, ()):
        raise Refused("signed levels have no known range: save as 8 or 16 bit, unsigned")
    if image.mode.startswith("I"):  # more than 8 bits of grey; a plain conversion would clip it at 255
        return np.repeat(_grey(image)[..., None], 3, axis=2)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.array(image.convert("RGB"))


def _grey(image: Image.Image) -> NDArray[np.uint8]:
    """Return the 8-bit levels `(H, W)` of grey with more bits. The format, and not the image, says which level is white."""
    levels = np.asarray(image).astype(np.int64)
    white = 65535  # of PNG and PGM, whatever the file's own range
    if isinstance(image, TiffImageFile):
        bits = image.tag_v2.get(BITSPERSAMPLE, (1,))[0]
        if bits > 16:
            raise Refused(f"{bits}-bit integer levels have no known range: save as 8 or 16 bit")
        white = 2**bits - 1
        if image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == MIN_IS_WHITE:
            levels = white - levels
    scaled = ((levels * 255 + white // 2) // white).astype(np.uint8)
    return np.where(levels == image.info.get("transparency"), np.uint8(255), scaled)


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
