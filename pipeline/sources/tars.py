"""WebDataset tars as a source: `train-*.tar` and `test-*.tar`."""

from __future__ import annotations

import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import IO

from pipeline.config.class_selection import class_lines
from pipeline.shards.tar import content, files, open_tar
from pipeline.sources.content import LONGEST, described
from pipeline.sources.dataset import Dataset, Entry, SourceError, numbered
from pipeline.sources.decoding import IMAGE_SUFFIXES
from pipeline.sources.listing import HIDDEN, FileReader, Listing
from pipeline.sources.splits import shards_by_split
from pipeline.storage.folder import Folder
from pipeline.storage.records import shown

CLASS_NAMES = "classes.txt"
LABEL_BYTES = 32  # at most, for an integer and the space around it
LABEL = re.compile(rb"\s*[+-]?\d+\s*")  # Python would read 1_0 as ten
BLOCK = 2**20  # bytes that are read at a time


def tars(listing: Listing) -> Dataset | None:
    """Return the images in WebDataset tars: `<key>.png` (or jpg, ...) and an integer in `<key>.cls`. `classes.txt` may hold names.

    Raises:
        SourceError: a tar is damaged, or a sample lacks its image or its label.
    """
    found = shards_by_split(listing, ".tar")
    if found is None:
        return None
    splits, left_out = found
    entries: list[Entry] = []
    others: Counter[str] = Counter()
    for split, names in splits.items():
        for file in names:
            inside, beside = _index(listing.folder, split, file)
            entries += inside
            others += beside
            if not inside:
                left_out.setdefault("tars without a sample", []).append(file)
    if others:
        left_out["members of tars that are neither a label nor an image with a label"] = [f"{k} ({n})" for k, n in others.most_common()]
    if not entries:
        raise SourceError(f"{listing.folder.uri}: the tars hold no samples")
    classes, read = _class_names(listing)
    classes = classes or numbered(entry.label for entry in entries)
    return Dataset(classes, entries, FileReader(listing.folder), in_shards=True, files_read=read, left_out=left_out)


def _class_names(listing: Listing) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the class names of `classes.txt`, and the name of that file; neither if there is no such file."""
    files = [name for name in (*listing.files, *listing.unusable) if name.rpartition("/")[2].casefold() == CLASS_NAMES]
    if not files:
        return (), ()
    if len(files) > 1:
        raise SourceError(f"{listing.folder.uri} has several files with class names, {shown(files)}: leave the one that is meant")
    where = f"{listing.folder.uri}/{files[0]}"
    if files[0] in listing.unusable:
        raise SourceError(f"{where}: {listing.unusable[files[0]]}")
    try:
        names = class_lines(listing.folder.read(files[0]), where)
    except ValueError as error:
        raise SourceError(str(error)) from error
    if "" in names:
        raise SourceError(f"{where}: expected a class name in each line, found none in line {names.index('') + 1}")
    return names, (files[0],)


def _index(folder: Folder, split: str, file: str) -> tuple[list[Entry], Counter[str]]:
    """Return the places of the images in one tar and their labels, and the number of other members by extension."""
    where = f"{folder.uri}/{file}"
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    others: Counter[str] = Counter()
    with folder.stream(file) as stream:
        try:
            with open_tar(stream) as tar:
                for name, member in _members(tar, where):
                    stem, extension = _split_name(name)
                    if HIDDEN.search(name):
                        others["hidden"] += 1
                    elif extension in IMAGE_SUFFIXES:
                        if stem in images:
                            raise SourceError(f"{where}: sample {stem!r} has two images, expected one")
                        images[stem] = member
                    elif extension == "cls":
                        if stem in labels:
                            raise SourceError(f"{where}: sample {stem!r} has two labels, expected one")
                        labels[stem] = _label(tar, member, f"{where}: {name}")
                    else:
                        others[_extensions(name)] += 1
                _check_end(stream, tar.offset)
        except SourceError:
            raise
        except tarfile.TarError as error:
            stream.seek(0)
            if what := described(bytes(stream.read(LONGEST))):
                raise SourceError(f"{where}: expected an uncompressed tar, found {what}") from error
            raise SourceError(f"{where}: damaged or cut short ({error}): fetch or pack it again") from error
    # A key may have dots in it. Then an image without a label of that name is another image of the sample before the first dot.
    for stem in images.keys() - labels.keys():
        if stem.removesuffix(dots := _extensions(stem)[1:]) in labels and dots:
            others[_extensions(images.pop(stem).name)] += 1
    if unpaired := sorted(images.keys() ^ labels.keys()):
        raise SourceError(f"{where}: each sample needs an image ({', '.join(IMAGE_SUFFIXES)}) and a .cls member; not so {shown(unpaired)}")
    entries = [Entry(split, labels[stem], f"{file}#{stem}", file, info.offset_data, info.size) for stem, info in images.items()]
    return entries, others


def _members(tar: tarfile.TarFile, where: str) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Yield the names of files and links of a tar, without `.` and `..`, links last, each with the file that holds its bytes.

    Raises:
        SourceError: a link leads to no file of the tar.
        tarfile.TarError: the tar is damaged.
    """
    there: dict[str, tarfile.TarInfo] = {}
    for member in files(tar):
        there[name := posixpath.normpath(member.name)] = member
        yield _readable(name), member
    links = {posixpath.normpath(m.name): m for m in tar.getmembers() if m.islnk() or m.issym()}
    for name, link in links.items():
        target, seen = name, set()
        while target in links and target not in seen:
            seen.add(target)
            step = links[target]
            target = posixpath.normpath(step.linkname if step.islnk() else posixpath.join(posixpath.dirname(target), step.linkname))
        if target not in there:
            raise SourceError(f"{where}: {_readable(link.name)} is a link to no file of this tar: pack the files themselves")
        yield _readable(name), there[target]


def _readable(name: str) -> str:
    """Return a name as text, with bytes that are not UTF-8 written out."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> int:
    if member.size > LABEL_BYTES:
        raise SourceError(f"{where}: expected the number of a class, found {member.size} bytes")
    text = content(tar, member)
    if not LABEL.fullmatch(text):
        said = text.decode(errors="backslashreplace")
        raise SourceError(
            f"{where}: expected the number of a class, found {said!r}: number the classes from 0, and list their names in {CLASS_NAMES}"
        )
    return int(text)


def _split_name(name: str) -> tuple[str, str]:
    """Split a member's name at the last dot of its last component. The extension is in lower case."""
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.rpartition(".")
    return (f"{folder}{slash}{stem}", extension.lower()) if stem else (name, "")


def _extensions(name: str) -> str:
    """Return everything from the first dot of the last component on, as in `*.seg.json`."""
    return "*" + "".join(name.rpartition("/")[2].partition(".")[1:])


def _check_end(stream: IO[bytes], end: int) -> None:
    """Refuse a truncated tar, and one with another tar after it.

    tarfile takes either for the end of the archive, and samples would be missing silently.
    """
    stream.seek(end)
    if bytes(stream.read(tarfile.BLOCKSIZE)) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("the end-of-archive block is missing")
    while block := stream.read(BLOCK):
        if any(block):
            raise tarfile.ReadError("data follows its end, such as a second tar: put the tars into files of their own")
