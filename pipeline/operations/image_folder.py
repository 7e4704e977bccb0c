"""A release as image files under their original names."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.released_splits import released_splits, sets_aside
from pipeline.operations.exported import Changes, Exported, pairs
from pipeline.shards.file_formats import QUALITY, FormatName, exif, file_format, is_lossless
from pipeline.shards.pixels import colour_profile, decode, pixels_sha256
from pipeline.shards.shard import CorruptShard
from pipeline.shards.sizes import is_own_size
from pipeline.shards.tables import read_table, stream_column
from pipeline.storage.file_names import alike, safe
from pipeline.storage.folder import Folder
from pipeline.storage.layout import SAMPLES
from pipeline.storage.records import sha256
from pipeline.storage.run import Run
from pipeline.storage.stage import Manifest

PNGS: Mapping[str, str] = MappingProxyType({})
UNNAMED = ".unnamed"  # folder of files whose names are not known yet, while an export is built


def names(rows: Sequence[dict[str, Any]], suffixes: Mapping[str, str] = PNGS) -> dict[str, str]:
    """Return by key the file of each image, `<class name>/<original stem>.png`.

    Images of one class whose names would be the same keep their original extension, `a.jpg.png`, and if need be get their key.

    Args:
        rows: key, class_name and source of every image.
        suffixes: of the files, by key; `.png` if a source has none.

    Raises:
        ValueError: two classes, or even so two images, would have the same name.
    """
    if same := alike(sorted({row["class_name"] for row in rows})):
        raise ValueError(f"class names must differ as names of folders; the same are {', '.join(map(repr, same))}")
    choices: dict[str, tuple[str, str, str]] = {}
    for row in rows:
        source, folder = PurePosixPath(row["source"].replace("\\", "/")), safe(row["class_name"])
        stem, name, key = safe(source.stem), safe(source.name), safe(row["key"])
        suffix = suffixes.get(row["key"], ".png")
        choices[row["key"]] = (f"{folder}/{stem}{suffix}", f"{folder}/{name}{suffix}", f"{folder}/{name} {key}{suffix}")
    chosen: dict[str, str] = {}
    for level in range(3):
        open_keys = [key for key in choices if key not in chosen]
        taken = Counter(path.casefold() for path in (*chosen.values(), *(choices[key][level] for key in open_keys)))
        chosen |= {key: choices[key][level] for key in open_keys if taken[choices[key][level].casefold()] == 1}
    if len(chosen) < len(rows):
        raise ValueError(f"no names can be found that tell these images apart: {', '.join(sorted(choices.keys() - chosen.keys())[:5])}")
    return chosen


@dataclass(frozen=True)
class ExportConfig:
    """The form of an export.

    Attributes:
        format: of the files.
        quality: of JPEG, and of what is lossy in its source and does not tell its own; `QUALITY` if not given.
        keep_metadata: whether the EXIF of photographs that are packed as they came goes with them.
    """

    format: FormatName = "png"
    quality: int | None = None
    keep_metadata: bool = False

    def __post_init__(self) -> None:
        """Refuse a quality of what has none.

        Raises:
            ValueError: there is a quality with a lossless format, or it is out of range.
        """
        if self.quality is not None and not self.may_lose:
            raise ValueError(f"--quality is of --format jpeg and as-source, and {self.format} loses nothing: leave it out")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise ValueError(f"--quality must be from 1 to 100, got {self.quality}")

    @property
    def may_lose(self) -> bool:
        """True if files may lose levels."""
        return self.format in ("jpeg", "as-source")

    @property
    def needs_originals(self) -> bool:
        """True if files depend on the packed originals, or are measured beside them."""
        return self.keep_metadata or self.may_lose


AS_RELEASED = ExportConfig()


def export(run: Run, to: Folder, config: ExportConfig = AS_RELEASED) -> Exported:
    """Write every protected image under its name, and beside the folder what was written, which is returned.

    PNGs without metadata have the same bytes as in their shards.

    Args:
        run: a run whose protect stage has finished.
        to: a local folder that is empty or not there; it is filled whole or not at all.
        config: the form.

    Raises:
        ValueError: the folder is not local or not empty, the run is unfinished or has no metadata to keep, a format takes no picture so
            large, or an image is not the one recorded.
    """
    target = _target(to)
    protect, pack = Manifest.load(run, "protect"), Manifest.load(run, "pack")
    if config.keep_metadata and not is_own_size(pack.counts):
        raise ValueError("--keep-metadata: this run was packed without --input-size, as pixels alone, and has no metadata: leave it out")
    clean = read_table(run.child("pack"), SAMPLES, ["key", "split", "class_name", "source", "shard"])
    splits = released_splits(protect.asked["protect"].get("splits", ("train",)), pack.asked)
    there = clean.filter(pc.invert(pc.is_in(clean["shard"], pa.array(protect.missing, pa.string()))))
    sources = dict(zip(there["key"].to_pylist(), there["source"].to_pylist(), strict=True))
    with Folder.open(str(target)).staging() as building:
        files, changes = _write(run, sources, building.child(UNNAMED), config)
        paths = _paths(there, splits, {key: suffix for key, (suffix, _) in files.items()}, len(splits) > 1 and not sets_aside(pack.asked))
        if len(files) != len(paths):
            raise CorruptShard(f"{run.uri}: {len(paths)} clean images, but {len(files)} protected ones; verify.py names every fault")
        for key, path in paths.items():
            place = Path(building.file(path))
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(building.child(UNNAMED).file(key), place)
        building.child(UNNAMED).delete()
        record = Exported(
            release=protect.digest,
            format=config.format,
            quality=(config.quality or QUALITY) if config.may_lose else None,
            keep_metadata=config.keep_metadata,
            budget=protect.counts["budget"],
            lossy=changes.summary(protect.counts["budget"]),
            files={key: [path, files[key][1]] for key, path in paths.items()},
        )
        record.write(Folder.open(str(target)))  # before the folder is moved into place, which is then never without it
    return record


def _target(to: Folder) -> Path:
    """Return the folder to fill; a link to one stays a link.

    Raises:
        ValueError: it is not local or not empty.
    """
    if not to.is_local:
        raise ValueError(f"--to must be a local folder, got {to.uri}")
    target = Path(to.path).resolve()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"{target} is there already and is not an empty folder: give --to a new one")
    return target


def _write(run: Run, sources: Mapping[str, str], to: Folder, config: ExportConfig) -> tuple[dict[str, tuple[str, str]], Changes]:
    """Write every released image under its key, since names depend on the formats of all.

    Returns:
        By key the suffix and the digest of each file, and how lossy ones differ from the originals.
    """
    keys, recorded = (stream_column(run.child("protect"), SAMPLES, column) for column in ("key", "sha256"))
    hashes = dict(zip(keys, recorded, strict=True))
    files: dict[str, tuple[str, str]] = {}
    changes = Changes()
    Path(to.path).mkdir(parents=True)
    for shard, original, sample in pairs(run, originals=config.needs_originals):
        key, pixels = sample.key, sample.pixels
        if key not in sources or pixels_sha256(pixels) != hashes.get(key):
            where = f"{run.uri}/protect/{shard}: {key} ({sources.get(key, 'no name recorded')})"
            raise CorruptShard(f"{where}: not the image that was recorded; `python pipeline/verify.py --run` names every fault")
        form = file_format(config.format, config.quality, original.image if original else b"", sources[key])
        image = sample.image
        if form.name != "PNG" or config.keep_metadata:
            kept = exif(original.image) if config.keep_metadata and original else None
            beside = {"icc_profile": colour_profile(sample.image), "exif": kept}
            try:
                image = form.encode(pixels, beside)
            except ValueError as error:
                raise ValueError(f"{sources[key]}: {error}: take another --format") from error
        if original and not is_lossless(image):
            changes.add(decode(image), original.pixels)
        Path(to.file(key)).write_bytes(image)
        files[key] = form.suffix(sources[key]), sha256(image)
    return files, changes


def _paths(clean: pa.Table, splits: Sequence[str], suffixes: Mapping[str, str], apart: bool) -> dict[str, str]:
    """Return by key the file of each image of these splits: together as in a source without splits, or in a folder for each."""
    of_splits = {split: clean.filter(pc.equal(clean["split"], split)).to_pylist() for split in splits}
    if apart:
        return {key: f"{split}/{path}" for split, rows in of_splits.items() for key, path in names(rows, suffixes).items()}
    return names([row for rows in of_splits.values() for row in rows], suffixes)
