"""Image files without what is beside their pixels: a damaged or enormous comment is no reason to refuse a whole image."""

from __future__ import annotations

import struct
import zlib

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
START_OF_SCAN = 0xDA
EXIF, ADOBE, COMMENT = 0xE1, 0xEE, 0xFE  # orientation; how colours are to be read
ADOBE_BYTES = 12
APPLICATION = range(0xE0, 0xF0)
ORIENTED = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")  # keywords of the texts of a PNG that may say which side is up


def without_metadata(data: bytes) -> bytes | None:
    """Return a PNG or JPEG with less beside its pixels: first with what turns them, then without.

    None for any other file, for one whose structure is broken, and where nothing is left to remove.
    """
    try:
        if data.startswith(PNG):
            forms = [_bare_png(data, ORIENTED), _bare_png(data, ())]
        else:
            forms = [_bare_jpeg(data)] if data.startswith(JPEG) else []
    except (struct.error, IndexError):
        return None
    return next((bare for bare in forms if bare != data), None)


def _bare_png(data: bytes, texts: tuple[bytes, ...]) -> bytes:
    """Return the critical chunks, transparency, and orientation if it is whole. Source: the PNG specification, sections 5.3 and 5.4.

    Args:
        data: the file.
        texts: the beginnings of other chunks to keep if they are whole.
    """
    kept, at, name = [PNG], len(PNG), b""
    while name != b"IEND":
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        whole = struct.unpack_from(">I", data, end - 4)[0] == zlib.crc32(data[at + 4 : end - 4])
        critical = name[:1].isupper()
        if critical or name == b"tRNS" or (whole and (name == b"eXIf" or data.startswith(texts, at + 8, end))):
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _bare_jpeg(data: bytes) -> bytes:
    """Return the segments without those of applications, but for orientation and colours. Source: ITU T.81, annex B.1."""
    kept, at = [data[:2]], 2
    while data[at + 1] != START_OF_SCAN:
        marker, length = data[at + 1], struct.unpack_from(">H", data, at + 2)[0]
        useful = marker == EXIF or (marker == ADOBE and length >= 2 + ADOBE_BYTES)
        if useful or not (marker in APPLICATION or marker == COMMENT):
            kept.append(data[at : at + 2 + length])
        at += 2 + length
    return b"".join((*kept, data[at:]))
