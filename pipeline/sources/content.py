"""Files that hold something other than their name says, known by their first bytes."""

from __future__ import annotations

MAGIC = (
    (b"version https://git-lfs", "a Git LFS pointer instead of the file: fetch it with `git lfs pull`"),
    (b"\x1f\x8b", "gzip data: unpack it with gunzip"),
    (b"BZh", "bzip2 data: unpack it with bunzip2"),
    (b"\xfd7zXZ", "xz data: unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "Zstandard data: unpack it with unzstd"),
    (b"PK\x03\x04", "a zip archive: unpack it"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it"),
    (b"PAR1", "Parquet"),
    (b"\x89PNG", "a PNG"),
    (b"\xff\xd8\xff", "a JPEG"),
    (b"<svg", "an SVG drawing: save it as PNG"),
    (b"<?xml", "XML, such as an SVG drawing or the error of a download: save it as PNG, or fetch it again"),
    (b"<", "a web page, perhaps the error of a download: fetch it again"),
)
LONGEST = max(len(start) for start, _ in MAGIC)


def described(start: bytes) -> str | None:
    """Return what a file holds and what to do, from its first bytes, or None if they are of no known kind."""
    if not start:
        return "nothing: fetch it again"
    return next((what for magic, what in MAGIC if start.startswith(magic)), None)
