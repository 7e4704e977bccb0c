"""A release as image files under their original names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.released_splits import released_splits, sets_aside
from pipeline.shards.pixels import pixels_sha256
from pipeline.shards.shard import CorruptShard, read_shard
from pipeline.shards.tables import read_table
from pipeline.storage.file_names import alike, safe
from pipeline.storage.folder import Folder
from pipeline.storage.layout import SAMPLES
from pipeline.storage.run import Run
from pipeline.storage.stage import Manifest


def names(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Return by key the file of each image, `<class name>/<original stem>.png`.

    Images of one class whose names would be the same keep their original extension, `a.jpg.png`, and if need be get their key.

    Args:
        rows: key, class_name and source of every image.

    Raises:
        ValueError: two classes, or even so two images, would have the same name.
    """
    if same := alike(sorted({row["class_name"] for row in rows})):
        raise ValueError(f"class names must differ as names of folders; the same are {', '.join(map(repr, same))}")
    choices: dict[str, tuple[str, str, str]] = {}
    for row in rows:
        source, folder = PurePosixPath(row["source"].replace("\\", "/")), safe(row["class_name"])
        stem, name, key = safe(source.stem), safe(source.name), safe(row["key"])
        choices[row["key"]] = (f"{folder}/{stem}.png", f"{folder}/{name}.png", f"{folder}/{name} {key}.png")
    chosen: dict[str, str] = {}
    for level in range(3):
        open_keys = [key for key in choices if key not in chosen]
        taken = Counter(path.casefold() for path in (*chosen.values(), *(choices[key][level] for key in open_keys)))
        chosen |= {key: choices[key][level] for key in open_keys if taken[choices[key][level].casefold()] == 1}
    if len(chosen) < len(rows):
        raise ValueError(f"no names can be found that tell these images apart: {', '.join(sorted(choices.keys() - chosen.keys())[:5])}")
    return chosen


def export(run: Run, to: Folder) -> int:
    """Write every protected image, with the same bytes as in its shard, and return their number.

    Args:
        run: a run whose protect stage has finished.
        to: a local folder that is empty or not there; it is filled whole or not at all.

    Raises:
        ValueError: the folder is not local or not empty, the run is unfinished, or an image is not the one recorded.
    """
    if not to.is_local:
        raise ValueError(f"--to must be a local folder, got {to.uri}")
    target = Path(to.path).resolve()  # a link to a folder stays one
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"{target} is there already and is not an empty folder: give --to a new one")
    protect = Manifest.load(run, "protect")
    clean = read_table(run.child("pack"), SAMPLES, ["key", "split", "class_name", "source", "shard"])
    pack = Manifest.load(run, "pack")
    splits = released_splits(protect.asked["protect"].get("splits", ("train",)), pack.asked)
    there = clean.filter(pc.invert(pc.is_in(clean["shard"], pa.array(protect.missing, pa.string()))))
    paths = _paths(there, splits, apart=len(splits) > 1 and not sets_aside(pack.asked))
    recorded = read_table(run.child("protect"), SAMPLES, ["key", "sha256"])
    hashes = dict(zip(recorded["key"].to_pylist(), recorded["sha256"].to_pylist(), strict=True))
    written = 0
    with Folder.open(str(target)).staging() as building:
        for path in set(paths.values()):
            Path(building.file(path)).parent.mkdir(parents=True, exist_ok=True)
        for shard in (shard for split in splits for shard in protect.shards.get(split, [])):
            for sample in read_shard(run.child("protect"), shard):
                if sample.key not in paths or pixels_sha256(sample.pixels) != hashes.get(sample.key):
                    where = f"{run.uri}/protect/{shard.name}: {sample.key} ({paths.get(sample.key, 'no name recorded')})"
                    raise CorruptShard(f"{where}: not the image that was recorded; `python pipeline/verify.py --run` names every fault")
                Path(building.file(paths[sample.key])).write_bytes(sample.image)
                written += 1
        if written != len(paths):
            raise CorruptShard(f"{run.uri}: {len(paths)} clean images, but {written} protected ones; verify.py names every fault")
    return written


def _paths(clean: pa.Table, splits: Sequence[str], *, apart: bool) -> dict[str, str]:
    """Return by key the file of each image of these splits: together as in a source without splits, or in a folder for each."""
    of_splits = {split: clean.filter(pc.equal(clean["split"], split)).to_pylist() for split in splits}
    if apart:
        return {key: f"{split}/{path}" for split, rows in of_splits.items() for key, path in names(rows).items()}
    return names([row for rows in of_splits.values() for row in rows])
