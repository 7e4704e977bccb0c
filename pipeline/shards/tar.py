"""Files in a tar, as bytes in memory. Compression and false sizes are refused, and no name becomes a path."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO, Any

MOST_BYTES = 2**29  # of one member: an image of 64 million pixels, 16-bit RGBA, uncompressed
MOST_HEADER_BYTES = 2**16  # of a header that describes a member: a long name, a table of attributes


class _Header(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        if not header.isreg() and header.size > MOST_HEADER_BYTES:  # tarfile reads these whole, before anybody could look
            raise tarfile.ReadError(f"{header.name[:100]!r} is no file, and claims {header.size} bytes")
        return header


def open_tar(stream: IO[bytes] | Any, *, damaged: bool = False) -> tarfile.TarFile:
    """Open an uncompressed tar. With `damaged`, unreadable headers are skipped.

    Raises:
        tarfile.TarError: the stream is no tar.
    """
    return tarfile.open(fileobj=stream, mode="r:", tarinfo=_Header, ignore_zeros=damaged)


def files(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the regular files of a tar, in order, without folders, links and devices.

    Raises:
        tarfile.TarError: the tar is damaged, or a member is sparse or larger than any image.
    """
    for member in tar:
        if not member.isreg():
            continue
        if member.issparse() or not 0 <= member.size <= MOST_BYTES:
            raise tarfile.ReadError(f"{member.name[:100]!r} claims {member.size} bytes, more than are there or than any image has")
        yield member


def content(tar: tarfile.TarFile, member: tarfile.TarInfo, most: int = MOST_BYTES) -> bytes:
    """Return the bytes of one file of a tar.

    Raises:
        tarfile.TarError: the file has more than `most` bytes, or fewer than its header says.
    """
    if member.size > most:
        raise tarfile.ReadError(f"{member.name[:100]!r} has {member.size} bytes, expected at most {most}")
    stream = tar.extractfile(member)
    assert stream is not None  # as for every regular file
    return stream.read()
