"""The files in a tar, as bytes in memory: no compression, no file that claims more than it is, and no name that becomes a path."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import IO, Any

MOST_BYTES = 2**29  # of one member: an image of 64 million pixels, 16-bit RGBA, uncompressed
MOST_HEADER_BYTES = 2**16  # of what describes a member: a long name, a table of attributes


class _Header(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        if not header.isreg() and header.size > MOST_HEADER_BYTES:  # tarfile reads these whole, before anybody could look
            raise tarfile.ReadError(f"{header.name[:100]!r} is no file, and claims {header.size} bytes")
        return header


def open_tar(stream: IO[bytes] | Any, *, damaged: bool = False) -> tarfile.TarFile:
    """An uncompressed tar; if it may be damaged, a header that was hit is stepped over.

    Raises:
        tarfile.TarError: it is no tar.
    """
    return tarfile.open(fileobj=stream, mode="r:", tarinfo=_Header, ignore_zeros=damaged)


def files(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Its regular files, in order; folders, links and devices are passed over.

    Raises:
        tarfile.TarError: it is damaged, or a member is larger than any image, or sparse: claims bytes that are not there.
    """
    for member in tar:
        if not member.isreg():
            continue
        if member.issparse() or not 0 <= member.size <= MOST_BYTES:
            raise tarfile.ReadError(f"{member.name[:100]!r} claims {member.size} bytes, more than are there or than any image has")
        yield member


def content(tar: tarfile.TarFile, member: tarfile.TarInfo, most: int = MOST_BYTES) -> bytes:
    """The bytes of one of its files.

    Raises:
        tarfile.TarError: there are more than `most`, or fewer than its header says.
    """
    if member.size > most:
        raise tarfile.ReadError(f"{member.name[:100]!r} has {member.size} bytes, expected at most {most}")
    stream = tar.extractfile(member)
    assert stream is not None  # as for every regular file
    return stream.read()
