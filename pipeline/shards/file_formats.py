"""Pictures as image files for other people: PNG, WebP and JPEG, and what stays beside their pixels.

Legend: images are `(H, W, 3)` uint8 arrays of grey levels 0..255.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile, get_sampling

from pipeline.shards.pixels import Pixels, extension

FormatName = Literal["png", "webp-lossless", "jpeg", "as-source"]
QUALITY = 90  # of JPEG and lossy WebP, unless another is given
SUFFIXES = {"PNG": (".png",), "WEBP": (".webp",), "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif")}
LONGEST_SIDE = {"WEBP": 16383, "JPEG": 65500, "PNG": 2**31 - 1}  # pixels
LONGEST_EXIF = 65000  # bytes, which a JPEG takes


@dataclass(frozen=True)
class FileFormat:
    """A format, by the name that Pillow has for it, and the options of its encoder."""

    name: Literal["PNG", "WEBP", "JPEG"]
    options: Mapping[str, Any] = field(default_factory=dict)

    def suffix(self, source: str) -> str:
        """Return the suffix of a file of this format: that of its source, as it is written there, if it is one of them."""
        own = PurePosixPath(source).suffix
        return own if own.lower() in SUFFIXES[self.name] else SUFFIXES[self.name][0]

    def encode(self, pixels: Pixels, beside: Mapping[str, bytes | None]) -> bytes:
        """Return the file of a picture. With one version of Pillow the same picture always gives the same bytes.

        Args:
            pixels: the levels.
            beside: what stays beside them: `icc_profile`, and perhaps `exif`.

        Raises:
            ValueError: the format takes no picture that is so large.
        """
        if max(pixels.shape) > LONGEST_SIDE[self.name]:
            raise ValueError(f"{self.name} takes {LONGEST_SIDE[self.name]} pixels a side, not {pixels.shape[0]} x {pixels.shape[1]}")
        stream, there = io.BytesIO(), {name: value for name, value in beside.items() if value}
        Image.fromarray(pixels, "RGB").save(stream, self.name, **self.options, **there)
        return stream.getvalue()


def file_format(name: FormatName, quality: int | None, packed: bytes = b"", source: str = "") -> FileFormat:
    """Return the format of an exported picture.

    Like its source, a JPEG gets the quantisation tables and the subsampling of the file, a lossy WebP, which does not tell its quality,
    the quality asked for. A source that is not packed as it came has the format that its name says.

    Args:
        name: the format asked for.
        quality: of what is lossy and does not tell its own; `QUALITY` if not given.
        packed: the packed picture, of a format like the source's.
        source: name of the source's file, for the same.
    """
    lossy = {"quality": quality or QUALITY}
    if name != "as-source":
        known = {"png": FileFormat("PNG"), "webp-lossless": FileFormat("WEBP", {"lossless": True}), "jpeg": FileFormat("JPEG", lossy)}
        return known[name]
    kind, suffix = extension(packed), PurePosixPath(source).suffix.lower()
    if kind == "jpg":
        return FileFormat("JPEG", _own_tables(packed) or lossy)
    if kind == "webp":
        return FileFormat("WEBP", {"lossless": True} if is_lossless(packed) else lossy)
    if suffix in SUFFIXES["JPEG"]:
        return FileFormat("JPEG", lossy)
    return FileFormat("WEBP", {"lossless": True}) if suffix in SUFFIXES["WEBP"] else FileFormat("PNG")


def _own_tables(jpeg: bytes) -> dict[str, Any]:
    with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as image:
        assert isinstance(image, JpegImageFile)
        sampling = get_sampling(image)
        return {"qtables": image.quantization, "subsampling": sampling} if sampling >= 0 and image.quantization else {}


def is_lossless(data: bytes) -> bool:
    """Return whether an image file has the levels that were written to it: a PNG, or a WebP with lossless pixels."""
    kind, at = extension(data), 12
    if kind != "webp":
        return kind == "png"
    while at + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, at)
        if name in (b"VP8 ", b"VP8L"):
            return bool(name == b"VP8L")
        at += 8 + length + length % 2
    return False


def exif(packed: bytes) -> bytes | None:
    """Return the EXIF of a packed picture, without the orientation, as its pixels are upright.

    Without a thumbnail and the maker's notes, either of which may show the original. None where there is none that can be read.
    """
    try:
        with Image.open(io.BytesIO(packed)) as image:
            found = image.getexif()
            found.pop(ExifTags.Base.Orientation, None)
            found.get_ifd(ExifTags.IFD.Exif).pop(ExifTags.Base.MakerNote, None)
            kept = found.tobytes() if found else b""
    except Exception:  # what is beside the pixels may be damaged in any way
        return None
    return kept if 0 < len(kept) < LONGEST_EXIF else None
