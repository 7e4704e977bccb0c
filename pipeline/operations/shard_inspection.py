"""The inspection of one shard, member by member, so that damage costs the samples it hits and nothing else.

Legend: images are `(H, W, 3)` uint8 arrays of grey levels 0..255.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.shards.pixels import STARTS, Pixels, decode_whole, pixels_sha256
from pipeline.shards.tar import content, open_tar
from pipeline.shards.tensors import stack
from pipeline.storage.layout import SAMPLES
from pipeline.storage.records import sha256
from pipeline.storage.run import Run
from pipeline.storage.stage import Shard
from sep.budget import UNITS, Budget, budget_used

Row = dict[str, Any]


@dataclass(frozen=True)
class Readable:
    """A sample that could be read: its decoded levels and its JSON member."""

    pixels: Pixels
    info: bytes


@dataclass(frozen=True)
class Change:
    """The change of an image: the largest change in levels, and its size in the unit of the budget."""

    levels: int
    used: int


@dataclass
class Inspection:
    """The outcome for one shard: the samples that could be read, and the faults."""

    name: str  # with its stage, as in "protect/train-000000.tar"
    sources: dict[str, str] = field(default_factory=dict)  # the original names of its samples, by key
    altered: bool = False
    samples: dict[str, Readable] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def fault(self, key: str, text: str) -> None:
        """Note a fault of one sample, under its key and its original name."""
        source = f" ({self.sources[key]})" if key in self.sources else ""
        self.faults.append(f"{self.name}: {key}{source}: {text}")

    def conclude(self) -> Iterator[str]:
        """Yield the fault of the shard, if its bytes are not those recorded, then the faults of its samples."""
        if self.altered:
            yield f"{self.name}: its bytes are not those recorded" + ("" if self.faults else ", no sample affected")
        yield from self.faults


def inspect(run: Run, stage: str, shard: Shard, clean_rows: dict[str, Row], own_rows: dict[str, Row]) -> Inspection:
    """Read one shard. Its keys and labels must be those of the clean rows, its pixels those of the stage's own rows."""
    found = Inspection(f"{stage}/{shard.name}", {key: row["source"] for key, row in clean_rows.items()})
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
    """Return the readable members of a tar, `{key: {extension: bytes}}`, and the keys that occur more than once.

    A damaged header costs its member. Reading goes on at the next whole header.
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
    image = next((name for name in STARTS.values() if name in members), "png")
    for extension in sorted(members.keys() ^ {"cls", "json", image}):
        faults.append(f"its {extension} is " + ("missing or unreadable" if extension in ("cls", "json", image) else "not part of a sample"))
    if members.get("cls", b"%d" % clean["label"]) != b"%d" % clean["label"]:
        faults.append(f"label {members['cls'].decode(errors='replace')!r}, recorded {clean['label']}")
    if own is None:
        faults.append(f"not in protect/{SAMPLES}")
    elif own["label"] != clean["label"]:
        faults.append(f"label {own['label']} in protect/{SAMPLES}, {clean['label']} in pack/{SAMPLES}")
    if own and own.get("clean_sha256", clean["sha256"]) != clean["sha256"]:
        faults.append(f"clean pixels of another hash in protect/{SAMPLES} than in pack/{SAMPLES}")
    if image not in members:
        return None, faults
    try:
        pixels = decode_whole(members[image])
    except Exception as error:  # whatever damaged bytes make the decoder raise
        return None, [*faults, f"damaged {image.upper()} ({str(error).split(' <')[0]})"]  # without the address of a stream
    if own and pixels_sha256(pixels) != own["sha256"]:
        faults.append("pixels are not those recorded")
    return Readable(pixels, members.get("json", b"")), faults


def compare(clean: Readable, protected: Readable, row: Row, budget: Budget) -> tuple[Change, list[str]]:
    """Return the change of a protected sample and its faults beside the clean one. With a budget of 0 both must be the same."""
    if clean.pixels.shape != protected.pixels.shape:
        return Change(0, 0), [f"size {protected.pixels.shape}, clean image {clean.pixels.shape}"]
    change = int(np.abs(protected.pixels.astype(np.int16) - clean.pixels.astype(np.int16)).max())
    # The other norms are measured by the function that crafting uses.
    used = change if budget.norm == "linf" else int(budget_used(stack([protected.pixels]), stack([clean.pixels]), budget.norm))
    faults = []
    if used > budget.limit:
        allowed = f"budget {budget.limit}" if budget.limit else "though its class is not protected"
        faults.append(f"changed by {used} {UNITS[budget.norm]}, {allowed}")
    if row and change != row["linf_levels"]:
        faults.append(f"changed by {change} levels, recorded {row['linf_levels']}")
    if clean.info != protected.info:
        faults.append("json differs from the clean sample's")
    return Change(change, used), faults
