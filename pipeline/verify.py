"""Audit a run from its files alone: `python pipeline/verify.py --run URI`.

Shards are read one pair at a time and member by member, so a damaged one costs the samples it hits and nothing else.
Legend: images are `(H, W, 3)` uint8 arrays of grey levels 0..255.
"""

from __future__ import annotations

import io
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tyro

from pipeline.added import ADDED, additions
from pipeline.classes import choose_classes
from pipeline.shards import Pixels, Shard, decode_whole_png, pixels_sha256, read_table, sha256
from pipeline.stage import Manifest, digest
from pipeline.storage import Folder
from pipeline.tar_members import content, open_tar

SAMPLES = "samples.parquet"
MEMBERS = ("cls", "json", "png")
Row = dict[str, Any]


@dataclass(frozen=True)
class Audit:
    """What came out: how much was looked at, and every fault as `stage/shard: key: what is wrong`."""

    images: int
    unprotected: int  # of them, in classes that are released as they are
    shards: int
    eps_levels: int
    largest_change: int
    faults: tuple[str, ...]

    def __str__(self) -> str:
        """Every fault on its line, then one line of summary."""
        others = f" and {self.unprotected} of other classes" if self.unprotected else ""
        images = f"{self.images - self.unprotected} protected images{others}"
        seen = f"{images} in {self.shards} shards, largest change {self.largest_change} of {self.eps_levels} levels"
        return "\n".join((*self.faults, f"{seen}: " + (f"{len(self.faults)} faults" if self.faults else "as recorded, no fault")))


@dataclass(frozen=True)
class Readable:
    """A sample that could be read: its decoded levels and its JSON member."""

    pixels: Pixels
    info: bytes


@dataclass
class Inspection:
    """One shard against what is recorded of it: what could be read, and what was wrong."""

    name: str  # with its stage, as in "protect/train-000000.tar"
    altered: bool = False
    samples: dict[str, Readable] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def fault(self, key: str, text: str) -> None:
        """Note what is wrong with one sample."""
        self.faults.append(f"{self.name}: {key}: {text}")

    def conclude(self) -> Iterator[str]:
        """The shard's own fault, if its bytes are others, then its samples'."""
        if self.altered:
            yield f"{self.name}: its bytes are not those recorded" + ("" if self.faults else ", no sample affected")
        yield from self.faults


def verify(run: Folder, base: Manifest | None = None) -> Audit:
    """Recompute everything the manifests and tables of the pack and protect stages say of the images.

    Args:
        run: a run, or an addition to one.
        base: of the protect stage of the run, if `run` is an addition.

    Raises:
        ValueError: there is nothing to audit: a stage has not finished, or a manifest or table is missing or damaged.
    """
    pack, protect = Manifest.load(run, "pack"), Manifest.load(run, "protect")
    eps_levels = protect.asked.get("protect", {}).get("eps_levels")
    if not isinstance(eps_levels, int):
        raise ValueError(f"{run.uri}/protect/manifest.json names no eps_levels: delete that folder and run the stage again")
    classes = choose_classes(protect.asked["protect"].get("classes", ()), pack.counts["classes"], "protect.classes")
    old = base is not None and protect.asked["protect"].get("added_to") != base.digest
    clean_table, protected_table = _table(run, "pack"), _table(run, "protect")
    protected_shards = {shard.name: shard for shard in protect.shards.get("train", [])}
    faults = ["protect/manifest.json: made with another release of the run than the present one"] if old else []
    faults += [*_manifest_faults(run, pack, protect), *_table_faults(pack, clean_table), *_table_faults(protect, protected_table)]
    images = unprotected = chosen = largest = 0
    for shard in pack.shards.get("train", []):
        clean_rows, protected_rows = _rows(clean_table, shard.name), _rows(protected_table, shard.name)
        clean = _inspect(run, "pack", shard, clean_rows, clean_rows)
        if shard.name in protect.missing:
            faults += [*clean.conclude(), f"protect/{shard.name}: missing: crafting it failed, and the run kept going without it"]
            continue
        protected = _inspect(run, "protect", protected_shards.get(shard.name, shard), clean_rows, protected_rows)
        others = {key for key, row in clean_rows.items() if row["label"] not in classes}
        for key in sorted(clean.samples.keys() & protected.samples.keys()):
            budget = 0 if key in others else eps_levels
            change, found = _compare(clean.samples[key], protected.samples[key], protected_rows.get(key, {}), budget)
            largest = max(largest, change)
            for text in found:
                protected.fault(key, text)
        chosen += len(clean_rows) - len(others)
        images += len(protected.samples)
        unprotected += len(others & protected.samples.keys())
        faults += [*clean.conclude(), *protected.conclude()]
    for shard in pack.shards.get("test", []):
        rows = _rows(clean_table, shard.name)
        faults += _inspect(run, "pack", shard, rows, rows).conclude()
    if protect.counts.get("protected", chosen) != chosen:
        faults.append(
            f"protect/manifest.json: {protect.counts['protected']} protected images recorded, but {chosen} clean ones of their classes"
        )
    if protect.counts.get("linf_levels") != largest:
        faults.append(f"protect/manifest.json: largest change {largest} levels, recorded {protect.counts.get('linf_levels')}")
    if protect.counts.get("classes", list(classes)) != list(classes):
        faults.append(f"protect/manifest.json: protected classes {protect.counts['classes']}, asked for {list(classes)}")
    return Audit(images, unprotected, len(protected_shards), eps_levels, largest, tuple(faults))


def _manifest_faults(run: Folder, pack: Manifest, protect: Manifest) -> Iterator[str]:
    """What the manifests contradict each other, themselves or the folder's list of files in."""
    for manifest in (pack, protect):
        where = f"{manifest.stage}/manifest.json"
        if digest(manifest.asked) != manifest.hash:
            yield f"{where}: its configuration was altered"
        listed = {shard.name for shards in manifest.shards.values() for shard in shards}
        for name in sorted(set(run.child(manifest.stage).names()) - listed):
            if name.endswith(".tar"):
                yield f"{manifest.stage}/{name}: not in the manifest"
    for split in ("train", "test"):
        if pack.counts.get(split) != sum(shard.count for shard in pack.shards.get(split, [])):
            yield f"pack/manifest.json: {pack.counts.get(split)} {split} images recorded, but its shards hold another number"
    expected = sum(shard.count for shard in pack.shards.get("train", []) if shard.name not in protect.missing)
    if protect.counts.get("images") != expected:
        yield f"protect/manifest.json: {protect.counts.get('images')} images recorded, but {expected} clean ones"
    clean, protected = ({shard.name for shard in manifest.shards.get("train", [])} for manifest in (pack, protect))
    clean -= set(protect.missing)
    for name in sorted(clean ^ protected):
        yield f"protect/{name}: " + ("not in the manifest" if name in clean else "in the manifest, but there is no such clean shard")
    for name, recorded in protect.asked.get("inputs", {}).items():
        try:
            if Manifest.load(run, name).digest != recorded:
                yield f"{name}/manifest.json: not the one the protected images were made from"
        except ValueError as error:
            yield str(error)


def _table_faults(manifest: Manifest, table: pa.Table) -> Iterator[str]:
    where = f"{manifest.stage}/{SAMPLES}"
    keys = table["key"].value_counts()
    for twice in keys.filter(pc.greater(keys.field("counts"), 1)).field("values").to_pylist():
        yield f"{where}: {twice}: recorded more than once"
    expected = sum(shard.count for shards in manifest.shards.values() for shard in shards)
    if table.num_rows != expected:
        yield f"{where}: {table.num_rows} images recorded, {expected} in the manifest"


def _table(run: Folder, stage: str) -> pa.Table:
    columns = {"pack": ["key", "label", "shard", "sha256"], "protect": ["key", "label", "shard", "sha256", "clean_sha256", "linf_levels"]}
    try:
        return read_table(run.child(stage), SAMPLES, columns[stage])
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{run.uri}/{stage}/{SAMPLES} is missing or damaged ({error}): delete that folder and run the stage again"
        ) from error


def _rows(table: pa.Table, shard: str) -> dict[str, Row]:
    return {row["key"]: row for row in table.filter(pc.equal(table["shard"], shard)).to_pylist()}


def _inspect(run: Folder, stage: str, shard: Shard, clean_rows: dict[str, Row], own_rows: dict[str, Row]) -> Inspection:
    """Read one shard; keys and labels must be those of the clean rows, pixels those of the stage's own rows."""
    found = Inspection(f"{stage}/{shard.name}")
    try:
        data = run.child(stage).read(shard.name)
    except FileNotFoundError:
        found.faults.append(f"{found.name}: missing")
        data = b""
    found.altered = bool(data) and sha256(data) != shard.sha256
    contents, repeated = read_members(data)
    for key in repeated:
        found.fault(key, "there more than once")
    if shard.count != len(clean_rows):
        found.faults.append(f"{found.name}: {shard.count} images in the manifest, {len(clean_rows)} in pack/{SAMPLES}")
    for key in sorted(clean_rows.keys() | own_rows.keys() | contents.keys()):
        if key not in clean_rows:
            found.fault(key, f"not a clean image of this shard in pack/{SAMPLES}")
        elif key not in contents:
            found.fault(key, "missing")
        else:
            sample, faults = _inspect_sample(contents[key], clean_rows[key], own_rows.get(key))
            for text in faults:
                found.fault(key, text)
            if sample:
                found.samples[key] = sample
    return found


def read_members(data: bytes) -> tuple[dict[str, dict[str, bytes]], list[str]]:
    """What can still be read of a tar: `{key: {extension: bytes}}`, and the keys that are there more than once.

    A header that was hit costs its member: reading goes on at the next one that is whole.
    """
    contents: dict[str, dict[str, bytes]] = {}
    repeated: dict[str, None] = {}  # an ordered set
    try:
        with open_tar(io.BytesIO(data), damaged=True) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                readable = member.isreg() and not member.issparse()
                if extension in contents.setdefault(key, {}):
                    repeated[key] = None
                contents[key][extension] = content(tar, member) if readable else b""
    except tarfile.TarError:
        pass  # empty, or cut in the middle of a member: what was not reached counts as missing
    return contents, list(repeated)


def _inspect_sample(members: dict[str, bytes], clean: Row, own: Row | None) -> tuple[Readable | None, list[str]]:
    faults = []
    for extension in sorted(members.keys() ^ set(MEMBERS)):
        faults.append(f"its {extension} is " + ("missing or unreadable" if extension in MEMBERS else "not part of a sample"))
    if members.get("cls", b"%d" % clean["label"]) != b"%d" % clean["label"]:
        faults.append(f"label {members['cls'].decode(errors='replace')!r}, recorded {clean['label']}")
    if own is None:
        faults.append(f"not in protect/{SAMPLES}")
    elif own["label"] != clean["label"]:
        faults.append(f"label {own['label']} in protect/{SAMPLES}, {clean['label']} in pack/{SAMPLES}")
    if own and own.get("clean_sha256", clean["sha256"]) != clean["sha256"]:
        faults.append(f"clean pixels of another hash in protect/{SAMPLES} than in pack/{SAMPLES}")
    if "png" not in members:
        return None, faults
    try:
        pixels = decode_whole_png(members["png"])
    except Exception as error:  # whatever damaged bytes make the decoder raise
        return None, [*faults, f"damaged PNG ({str(error).split(' <')[0]})"]  # without the address of a stream
    if own and pixels_sha256(pixels) != own["sha256"]:
        faults.append("pixels are not those recorded")
    return Readable(pixels, members.get("json", b"")), faults


def _compare(clean: Readable, protected: Readable, row: Row, budget: int) -> tuple[int, list[str]]:
    """Largest change in levels, and what is wrong with the protected sample beside its clean one; no budget: it must be the same."""
    if clean.pixels.shape != protected.pixels.shape:
        return 0, [f"size {protected.pixels.shape}, clean image {clean.pixels.shape}"]
    change = int(np.abs(protected.pixels.astype(np.int16) - clean.pixels.astype(np.int16)).max())
    faults = []
    if change > budget:
        faults.append(f"changed by {change} levels, " + (f"budget {budget}" if budget else "though its class is not protected"))
    if row and change != row["linf_levels"]:
        faults.append(f"changed by {change} levels, recorded {row['linf_levels']}")
    if clean.info != protected.info:
        faults.append("json differs from the clean sample's")
    return change, faults


def _check_run(run: str) -> int:
    """Audit a run from its files alone: keys, labels, hashes, counts, and the budget of every pixel.

    Args:
        run: folder or URI (s3://...) of a finished run
    """
    try:
        folder = Folder.open(run)
        audits = {"": verify(folder)}
        for addition in additions(folder):
            audits[f"{ADDED}/{addition.path.rsplit('/', 1)[1]}: "] = verify(addition, Manifest.load(folder, "protect"))
    except (ValueError, OSError) as error:
        print(f"verify.py: {error}", file=sys.stderr)
        return 1
    for name, audit in audits.items():
        print("\n".join(f"{name}{line}" for line in str(audit).splitlines()))
    return 1 if any(audit.faults for audit in audits.values()) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 and a summary, or 1 and every fault by name; 2 for wrong usage."""
    return tyro.cli(_check_run, prog="verify.py", args=arguments)


if __name__ == "__main__":
    sys.exit(main())
