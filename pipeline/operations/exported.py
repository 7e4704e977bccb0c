"""The record of an exported folder, which lies beside it, and the verification of the folder by that record.

Legend: images are `(H, W, 3)` uint8 arrays of grey levels 0..255.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.shards.file_formats import FormatName, is_lossless
from pipeline.shards.pixels import Pixels, decode_whole
from pipeline.shards.shard import Sample, read_shard
from pipeline.storage.folder import Folder
from pipeline.storage.layout import EXPORTED
from pipeline.storage.records import counted, sha256, to_json
from pipeline.storage.run import Run
from pipeline.storage.stage import Manifest

MOST = 99  # percent of the values, whose largest change is reported


class Changes:
    """Counts of values by the levels that they changed. Counts are integers, so the order in which images come does not matter."""

    def __init__(self) -> None:
        """Start with no images."""
        self.files, self.counts = 0, np.zeros(256, np.int64)

    def add(self, after: Pixels, before: Pixels) -> None:
        """Add one image."""
        self.files += 1
        self.counts += np.bincount(np.abs(after.astype(np.int16) - before).ravel(), minlength=256)

    def summary(self, budget: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the figures for the record; None without images.

        Args:
            budget: norm and limit of the release. Only of the largest change of a value is there a share over it.
        """
        if not self.files:
            return None
        up_to, total = self.counts.cumsum(), int(self.counts.sum())
        largest, most = int(self.counts.nonzero()[0].max()), int(np.searchsorted(up_to, total * MOST / 100))
        over = round(100 * (1 - int(up_to[budget["limit"]]) / total), 4) if budget["norm"] == "linf" else None
        return {"files": self.files, "largest": largest, "percentile_99": most, "over_budget_percent": over}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The record of an exported folder.

    Attributes:
        release: digest of the manifest of the protect stage.
        format: asked for.
        quality: of what is lossy and does not tell its own; None where nothing is.
        keep_metadata: whether EXIF stays.
        budget: norm and limit of the release.
        lossy: what lossy files came to beside the originals, as `Changes.summary` says it; None where there are none.
        files: path in the folder and digest of each file, by the key of its image.
    """

    release: str
    format: FormatName
    quality: int | None
    keep_metadata: bool
    budget: dict[str, Any]
    lossy: dict[str, Any] | None
    files: dict[str, list[str]]

    @property
    def name(self) -> str:
        """The format, with its quality."""
        return self.format if self.quality is None or self.format == "as-source" else f"{self.format}-{self.quality}"

    def on_lossy(self) -> str:
        """Return a sentence on what the lossy files came to; nothing where there are none."""
        if self.lossy is None:
            return ""
        files, largest, most, over = (self.lossy[key] for key in ("files", "largest", "percentile_99", "over_budget_percent"))
        beyond = "" if over is None else f", {over:.2f} % of them over the budget of {self.budget['limit']} levels"
        return f"{files} files are lossy: {MOST} % of their values are within {most} levels of the originals, all within {largest}{beyond}"

    def write(self, folder: Folder) -> None:
        """Put the record beside the folder."""
        beside, name = _place(folder)
        beside.write(name, to_json(asdict(self)))

    @classmethod
    def read(cls, folder: Folder) -> Exported:
        """Return the record beside a folder.

        Raises:
            ValueError: it is missing or damaged.
        """
        beside, name = _place(folder)
        try:
            return cls(**json.loads(beside.read(name)))
        except FileNotFoundError as error:
            raise ValueError(f"expected the record {beside.file(name)} beside the exported folder: it moves with the folder") from error
        except (ValueError, TypeError) as error:
            raise ValueError(f"{beside.file(name)} is damaged ({error}): export the release anew") from error


def _place(folder: Folder) -> tuple[Folder, str]:
    path = Path(folder.path).resolve()
    return Folder.open(str(path.parent)), f"{path.name}{EXPORTED}"


@dataclass(frozen=True)
class ExportVerification:
    """The outcome of the verification of an exported folder: its record, and every fault as `path: what is wrong`."""

    folder: str
    record: Exported
    faults: tuple[str, ...]

    def __str__(self) -> str:
        """Return every fault on its line, then one line of summary."""
        seen = f"{len(self.record.files)} files in {self.folder}, format {self.record.name}"
        seen += f", {said}" if (said := self.record.on_lossy()) else ""
        return "\n".join((*self.faults, f"{seen}: " + (counted(len(self.faults), "fault") if self.faults else "as recorded, no fault")))


def verify_exported(run: Run, folder: Folder) -> ExportVerification:
    """Hold every file of an exported folder to its record, to the release in the run, and to the originals.

    Raises:
        ValueError: the record is missing or damaged, a stage has not finished, or a shard is not as recorded.
    """
    record, protect = Exported.read(folder), Manifest.load(run, "protect")
    faults = [] if record.release == protect.digest else ["exported from another release than the one that is in the run now"]
    changes, left = Changes(), dict(record.files)
    for name in sorted({*folder.names(recursive=True)} - {path for path, _ in record.files.values()}):
        faults.append(f"{name}: not in the record")
    for _, clean, protected in pairs(run):
        assert clean is not None
        if (recorded := left.pop(protected.key, None)) is None:
            faults.append(f"{protected.key}: not in the record")
            continue
        faults += [f"{recorded[0]}: {fault}" for fault in _faults(folder, recorded, clean, protected, changes)]
    faults += [f"{path}: of no image of the release" for path, _ in left.values()]
    found = changes.summary(record.budget)
    if not faults and found != record.lossy:
        faults.append(f"changes beside the originals come to {found}, recorded {record.lossy}")
    return ExportVerification(folder.path, record, tuple(faults))


def _faults(folder: Folder, recorded: Sequence[str], clean: Sample, protected: Sample, changes: Changes) -> Iterator[str]:
    """Yield what is wrong with a file, and add a lossy one to the changes."""
    path, digest = recorded
    try:
        data = folder.read(path)
        pixels = decode_whole(data)
    except FileNotFoundError:
        yield "missing"
        return
    except Exception as error:  # whatever damaged bytes make the decoder raise
        yield f"damaged ({str(error).split(' <')[0]})"
        return
    if sha256(data) != digest:
        yield "its bytes are not those recorded"
    released = protected.pixels
    if pixels.shape != released.shape:
        yield f"size {pixels.shape}, in the release {released.shape}"
    elif not is_lossless(data):
        changes.add(pixels, clean.pixels)
    elif not np.array_equal(pixels, released):
        yield "not the levels of the release"


def pairs(run: Run, originals: bool = True) -> Iterator[tuple[str, Sample | None, Sample]]:
    """Yield the shard's name, the original if asked for, and the image of every image of the release.

    Raises:
        CorruptShard: a shard is not as recorded.
    """
    pack, protect = Manifest.load(run, "pack"), Manifest.load(run, "protect")
    packed = {shard.name: shard for shards in pack.shards.values() for shard in shards}
    for shard in (shard for shards in protect.shards.values() for shard in shards):
        clean = {each.key: each for each in read_shard(run.child("pack"), packed[shard.name])} if originals else {}
        for protected in read_shard(run.child("protect"), shard):
            yield shard.name, clean.get(protected.key), protected
