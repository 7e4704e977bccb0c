"""WebDataset tars as a source: `train-*.tar` and `test-*.tar`."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Sequence

from pyarrow import fs

from pipeline.shards.tar import content, files, open_tar
from pipeline.sources.dataset import Dataset, Entry, SourceError, numbered
from pipeline.sources.listing import FileReader, Listing
from pipeline.storage.folder import Folder
from pipeline.storage.records import shown

IMAGE_MEMBERS = ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm")
BLOCK = 512  # bytes; the unit of a tar
LABEL_BYTES = 32  # at most, for an integer and the space around it


def tars(listing: Listing) -> Dataset | None:
    """Return the images in WebDataset tars: `<key>.png` (or jpg, ...) and an integer in `<key>.cls`. `classes.txt` may hold names.

    Raises:
        SourceError: a tar is damaged, or a sample lacks its image or its label.
    """
    splits = listing.by_split(".tar")
    if splits is None:
        return None
    entries = [entry for split, files in splits.items() for file in files for entry in _index(listing.folder, split, file)]
    if not entries:
        raise SourceError(f"{listing.folder.uri}: the tars hold no samples")
    names = f"{splits['train'][0].rpartition('/')[0]}/classes.txt".lstrip("/")
    if names in listing.files:
        lines = listing.folder.read(names).decode().splitlines()
        classes = tuple(line.strip() for line in lines if line.strip())
    else:
        classes = numbered(entry.label for entry in entries)
    return Dataset(classes, entries, FileReader(listing.folder))


def _index(folder: Folder, split: str, file: str) -> list[Entry]:
    """Return the places of the images in one tar, and their labels."""
    where = f"{folder.uri}/{file}"
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    with folder.stream(file) as stream:
        try:
            with open_tar(stream) as tar:
                for member in files(tar):
                    stem, extension = _split_name(member.name)
                    if extension in IMAGE_MEMBERS:
                        if stem in images:
                            raise SourceError(f"{where}: sample {stem!r} has two images, expected one")
                        images[stem] = member
                    elif extension == "cls":
                        if stem in labels:
                            raise SourceError(f"{where}: sample {stem!r} has two labels, expected one")
                        labels[stem] = int(content(tar, member, LABEL_BYTES))
                _check_end(stream, tar.getmembers())
        except SourceError:
            raise
        except (tarfile.TarError, ValueError) as error:
            raise SourceError(f"{where}: damaged, or a .cls member is not an integer ({error})") from error
    if unpaired := sorted(images.keys() ^ labels.keys()):
        raise SourceError(f"{where}: each sample needs an image ({', '.join(IMAGE_MEMBERS)}) and a .cls member; not so {shown(unpaired)}")
    return [Entry(split, labels[stem], f"{file}#{stem}", file, info.offset_data, info.size) for stem, info in images.items()]


def _split_name(name: str) -> tuple[str, str]:
    """Split a member's name at the first dot of its last component, as WebDataset does. The extension is in lower case."""
    match = re.fullmatch(r"((?:.*/)?[^/.]+)\.([^/]*)", name)
    return (match[1], match[2].lower()) if match else (name, "")


def _check_end(stream: fs.FileSystem, members: Sequence[tarfile.TarInfo]) -> None:
    """Refuse a truncated tar. tarfile takes its end for the end of the archive, and samples would be missing silently."""
    last = members[-1] if members else None
    stream.seek(last.offset_data + -(-last.size // BLOCK) * BLOCK if last else 0)
    if bytes(stream.read(BLOCK)) != bytes(BLOCK):
        raise tarfile.ReadError("the end-of-archive block is missing")
