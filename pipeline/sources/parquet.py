"""Parquet files as data hubs publish them: an image struct of `bytes` and `path`, and a label: text, or a number with or without names."""

from __future__ import annotations

import json
import logging
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.sources.content import LONGEST, described
from pipeline.sources.dataset import Dataset, Entry, SourceError, numbered
from pipeline.sources.listing import Listing
from pipeline.sources.splits import shards_by_split
from pipeline.storage.folder import Folder
from pipeline.storage.records import shown

log = logging.getLogger(__name__)

IMAGE_NAMES = ("image", "img")
LABEL_NAMES = ("label", "fine_label")
TEXTS, NUMBERS = 2, 10  # rows per value, on average, that a column of another name has at least if it holds labels


@dataclass(frozen=True)
class ParquetReader:
    """A reader of the row groups that hold the wanted rows, one at a time."""

    folder: Folder
    by_file: bool = True

    def read(self, entries: Sequence[Entry]) -> Iterator[tuple[Entry, bytes]]:
        """Yield each entry with its encoded bytes."""
        for file, inside in groupby(sorted(entries, key=lambda e: (e.file, e.start)), key=lambda e: e.file):
            with self.folder.stream(file) as stream, pq.ParquetFile(stream) as parquet:
                image = columns(parquet.schema_arrow, file)[0]
                starts = [0, *accumulate(parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups))]
                for group, rows in groupby(inside, key=lambda e: bisect_right(starts, e.start) - 1):
                    encoded = parquet.read_row_group(group, columns=[f"{image}.bytes"])[image]
                    for entry in rows:
                        yield entry, (encoded[entry.start - starts[group]].as_py() or {}).get("bytes") or b""


@dataclass(frozen=True)
class _Rows:
    """The rows of one file: the name of the label column, each row's label and original name, and the class names if the file has any."""

    column: str
    labels: list[int]
    originals: list[str | None]
    names: tuple[str, ...]
    is_text: bool


def find(listing: Listing) -> Dataset | None:
    """Return every row of the Parquet files; None where the folder has no Parquet files.

    Raises:
        SourceError: a file is damaged, its columns are not understood or differ from another file's, or its labels are not 0..K-1.
    """
    found = shards_by_split(listing, ".parquet")
    if found is None:
        return None
    splits, left_out = found
    rows = {file: _rows(listing.folder, file) for files in splits.values() for file in files}
    _check_alike(rows)
    _check_label(rows)
    entries: list[Entry] = []
    paths: dict[int, str | None] = {}  # the original name of each entry, by its position
    named = _all_names(rows.values())
    for split, files in splits.items():
        first = len(entries)
        for file in files:
            labels = _renumbered(rows[file], named, file)
            for row, (label, original) in enumerate(zip(labels, rows[file].originals, strict=True)):
                paths[len(entries)] = original
                entries.append(Entry(split, label, f"{file}#{row}", file, row))
        originals = [paths[i] for i in range(first, len(entries))]
        if all(originals) and len(set(originals)) == len(originals):  # otherwise file and row are the name
            entries[first:] = [
                Entry(e.split, e.label, str(path), e.file, e.start) for e, path in zip(entries[first:], originals, strict=True)
            ]
    if not entries:
        raise SourceError(f"{listing.folder.uri}: the Parquet files hold no rows")
    classes = named or _folders_of(entries, paths) or numbered(entry.label for entry in entries)
    return Dataset(classes, entries, ParquetReader(listing.folder), in_shards=True, left_out=left_out)


def _check_alike(rows: Mapping[str, _Rows]) -> None:
    """Refuse files whose labels may mean something else than those of the first file."""
    (first, model), *others = rows.items()
    for file, other in others:
        if other.column != model.column:
            raise SourceError(f"{file} has its labels in `{other.column}`, {first} in `{model.column}`: give the files the same columns")
        if bool(other.names) != bool(model.names) and other.labels and model.labels:
            without, having = (file, first) if model.names else (first, file)
            raise SourceError(f"{without} has no class names, {having} has: give all files the same metadata, or labels that are text")


def _check_label(rows: Mapping[str, _Rows]) -> None:
    """Refuse a column of a name of its own, without class names, that has too many values for one of labels. Log any other."""
    file, model = next(iter(rows.items()))
    if model.column in LABEL_NAMES:
        return
    values = [each.names[label] if each.is_text else label for each in rows.values() for label in each.labels]
    named = any(each.names and not each.is_text for each in rows.values())
    if not named and len(values) > 1 and len(set(values)) * (TEXTS if model.is_text else NUMBERS) > len(values):
        raise SourceError(
            f"{file}: column `{model.column}` has {len(set(values))} values in {len(values)} rows, and may be no label: call the column "
            "that is one `label`"
        )
    log.info("pack: labels from the column `%s`", model.column)


def _all_names(rows: Iterable[_Rows]) -> tuple[str, ...]:
    """Return the class names of all files: names of numbers in their order, then names that are only in text, by name."""
    declared = dict.fromkeys(name for each in rows if not each.is_text for name in each.names)
    return (*declared, *sorted({name for each in rows if each.is_text for name in each.names} - declared.keys()))


def _renumbered(rows: _Rows, named: tuple[str, ...], file: str) -> list[int]:
    """Return the labels of one file by the class names of all files. The same name is the same class, whatever its number."""
    if not rows.names:
        return rows.labels
    if outside := sorted({label for label in rows.labels if not 0 <= label < len(rows.names)}):
        raise SourceError(f"{file}: labels must be 0..{len(rows.names) - 1} for {len(rows.names)} class names, found {shown(outside)}")
    number = {name: label for label, name in enumerate(named)}
    new = [number[name] for name in rows.names]
    return [new[label] for label in rows.labels]


def columns(schema: pa.Schema, file: str) -> tuple[str, str]:
    """Return the names of the image and the label column.

    The image column is `image`, or else `img`, or else the only struct that holds the bytes of an image. The label column is `label`,
    or else `fine_label`, or else the only one that has class names in the metadata, or else the only column of integers or text. The
    order of the columns does not matter.

    Raises:
        SourceError: a column is missing, or several could be meant.
    """
    images = [f.name for f in schema if _holds_images(f.type)]
    labels = [f.name for f in schema if pa.types.is_integer(f.type) or _is_text(f.type)]
    image = _choose(images, IMAGE_NAMES, "an image column (a struct with the field `bytes`)", schema, file)
    if wrong := [name for name in LABEL_NAMES if name in schema.names and name not in labels]:
        labels = [name for name in LABEL_NAMES[: LABEL_NAMES.index(wrong[0])] if name in labels]
    elif not set(LABEL_NAMES) & set(labels) and len(described := [name for name in labels if _class_names(schema, name)]) == 1:
        labels = described
    return image, _choose(labels, LABEL_NAMES, "a label column (of integers or text)", schema, file)


def _is_text(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value))


def _holds_images(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        return False
    content = kind.field("bytes").type
    return bool(pa.types.is_binary(content) or pa.types.is_large_binary(content))


def _choose(candidates: Sequence[str], names: Sequence[str], wanted: str, schema: pa.Schema, file: str) -> str:
    for name in names:
        if name in candidates:
            return name
    if len(candidates) == 1:
        return candidates[0]
    expected = f"{file}: expected {wanted} named {' or '.join(f'`{name}`' for name in names)}, or a single one of any name"
    if candidates:
        raise SourceError(f"{expected}; candidates are {', '.join(candidates)}: rename the one that is meant")
    raise SourceError(f"{expected}; no column is one, found {', '.join(f'{f.name}: {f.type}' for f in schema)}")


def _rows(folder: Folder, file: str) -> _Rows:
    """Return labels and original names of one file's rows, and its class names: of its schema, or the text itself."""
    where = f"{folder.uri}/{file}"
    try:
        with folder.stream(file) as stream, pq.ParquetFile(stream) as parquet:
            schema = parquet.schema_arrow
            image, label = columns(schema, file)
            has_path = schema.field(image).type.get_field_index("path") >= 0
            table = parquet.read(columns=[label, *([f"{image}.path"] if has_path else [])])
    except pa.ArrowException as error:
        with folder.stream(file) as stream:
            what = described(bytes(stream.read(LONGEST)))
        found = "one that is damaged or cut short: fetch it again" if what in (None, "Parquet") else what
        raise SourceError(f"{where}: expected a Parquet file, found {found}") from error
    values, names = table[label], _class_names(schema, label)
    if is_text := _is_text(values.type):
        values = pc.if_else(pc.equal(pc.utf8_trim_whitespace(values.cast(pa.string())), ""), None, values.cast(pa.string()))
    if values.null_count:
        raise SourceError(f"{where}: {values.null_count} rows have no label")
    if len(set(names)) < len(names):
        raise SourceError(f"{where}: expected a name of its own for each class, found {shown(names)}")
    if is_text:
        encoded = values.combine_chunks().dictionary_encode()
        names, values = tuple(encoded.dictionary.to_pylist()), encoded.indices
    originals: list[str | None] = [(value or {}).get("path") for value in table[image].to_pylist()] if has_path else [None] * len(table)
    return _Rows(label, list(values.to_pylist()), originals, names, is_text)


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """Return the class names in the `huggingface` schema metadata, if it has any."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return ()


def _folders_of(entries: Sequence[Entry], paths: dict[int, str | None]) -> tuple[str, ...]:
    """Return the folders of the original names as class names, if folders and labels 0..K-1 map one to one; else none."""
    pairs = {(e.label, PurePosixPath(paths[i] or "").parent.name) for i, e in enumerate(entries)}
    labels, folders = (sorted(side) for side in zip(*pairs, strict=True))
    one_to_one = labels == list(range(len(pairs))) and len(set(folders)) == len(pairs) and "" not in folders
    return tuple(name for _, name in sorted(pairs)) if one_to_one else ()
