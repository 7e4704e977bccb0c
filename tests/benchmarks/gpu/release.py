"""A release as its changes to the clean images, in small files: PNGs of noise hardly compress, changes of a few levels do.

python -m tests.benchmarks.gpu.release pack RUN TO              of a finished release; TO is filled with release-*.parquet
python -m tests.benchmarks.gpu.release restore FILES RUN TO     with any run that packed the same images: TO is filled with PNGs

Restored images lie in `TO/train` and clean test images in `TO/test`, in folders by class, so that the main job takes TO as `--data`.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.deadline import NEVER
from cluster.executor import open_executor
from cluster.work import Work, WorkFailed
from pipeline.shards.pixels import encode_png, pixels_sha256
from pipeline.shards.shard import read_shard
from pipeline.storage.file_names import safe
from pipeline.storage.records import to_json
from pipeline.storage.run import Run, open_run
from pipeline.storage.stage import Manifest, Shard

MOST_BYTES = 14 * 2**20  # of a file, before its last row group and footer
SCHEMA = pa.schema({"key": pa.string(), "change": pa.binary(), "sha256": pa.string()})  # change: (H, W, 3) int8; sha256: of the levels
Facts = dict[str, Any]


def pack(run: Run, to: Path, most_bytes: int = MOST_BYTES) -> Facts:
    """Write the changes of a release as Parquet files, and return what they are.

    Args:
        run: a run, or a point of a sweep, whose protect stage has finished.
        to: folder to fill; what is in it is removed.
        most_bytes: begin another file when one has so many.

    Raises:
        ValueError: the run is unfinished.
        WorkFailed: a shard was altered.
    """
    protect, clean = Manifest.load(run, "protect"), {shard.name: shard for shard in Manifest.load(run, "pack").shards["train"]}
    building = to.with_name(f"{to.name}.new")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    pieces = [Work(shard.name, (run, clean[shard.name], shard), shard.count) for shard in protect.shards["train"]]
    changes = dict(open_executor("local", NEVER).run_all(_changes, pieces, what="changes"))
    tables = (changes.pop(piece.name) for piece in pieces)
    while _write(tables, building / f"release-{len(list(building.iterdir())):02}.parquet", most_bytes):
        pass
    files = {path.name: path.stat().st_size for path in sorted(building.iterdir())}
    facts = {"files": files, "images": protect.counts["images"], "method": protect.counts["method"], "budget": protect.counts["budget"]}
    (building / "release.json").write_bytes(to_json(facts))
    shutil.rmtree(to, ignore_errors=True)
    building.rename(to)
    return facts


def _changes(run: Run, clean: Shard, shard: Shard) -> pa.Table:
    rows = []
    for before, after in zip(read_shard(run.child("pack"), clean), read_shard(run.child("protect"), shard), strict=True):
        assert before.key == after.key
        pixels = after.pixels
        change = pixels.astype(np.int16) - before.pixels
        assert np.abs(change).max() <= 127
        rows.append({"key": after.key, "change": change.astype(np.int8).tobytes(), "sha256": pixels_sha256(pixels)})
    return pa.Table.from_pylist(rows, SCHEMA)


def _write(tables: Iterator[pa.Table], file: Path, most_bytes: int) -> bool:
    """Write tables into a file until it is full. Return whether it is, so that there may be more of them."""
    if (first := next(tables, None)) is None:
        return False
    with file.open("wb") as stream, pq.ParquetWriter(stream, SCHEMA, compression="zstd", use_dictionary=False) as writer:
        writer.write_table(first)
        while stream.tell() < most_bytes:
            if (table := next(tables, None)) is None:
                return False
            writer.write_table(table)
    return True


def restore(files: Path, run: Run, to: Path) -> int:
    """Write the images of a release and the clean test images as PNGs, and return the number of protected ones.

    Args:
        files: folder of the files from `pack`.
        run: a run that has packed the same images.
        to: folder to create.

    Raises:
        ValueError: the files are not of these images, or incomplete.
    """
    rows = pq.read_table([str(path) for path in sorted(files.glob("release-*.parquet"))]).to_pylist()
    changes, packed, restored = {row["key"]: row for row in rows}, Manifest.load(run, "pack"), 0
    folders = [safe(name) for name in packed.counts["classes"]]
    for split, shards in packed.shards.items():
        for name in folders:
            (to / split / name).mkdir(parents=True)
        for shard in shards:
            for sample in read_shard(run.child("pack"), shard):
                pixels = sample.pixels
                if split == "train":
                    if (row := changes.get(sample.key)) is None:
                        raise ValueError(f"{files} has no image {sample.key} of {run.uri}: get all its files, and pack the same images")
                    pixels = (pixels + np.frombuffer(row["change"], np.int8).reshape(pixels.shape)).astype(np.uint8)
                    if pixels_sha256(pixels) != row["sha256"]:
                        raise ValueError(
                            f"{files}: image {sample.key} is not what was released: it was made from other images than {run.uri}"
                        )
                    restored += 1
                (to / split / folders[sample.label] / f"{sample.key}.png").write_bytes(encode_png(pixels))
    return restored


def main(arguments: list[str]) -> int:
    """Pack or restore."""
    try:
        match arguments:
            case ["pack", run, to]:
                facts = pack(open_run(run), Path(to))
                print(f"{facts['images']} images in {len(facts['files'])} files, {sum(facts['files'].values()) / 2**20:.1f} MiB: {to}")
            case ["restore", files, run, to]:
                print(f"{restore(Path(files), open_run(run), Path(to))} protected images in {to}/train")
            case _:
                print(__doc__)
                return 2
    except (ValueError, OSError, WorkFailed) as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
