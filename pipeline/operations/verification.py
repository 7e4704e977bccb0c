"""The verification of a run: every image, label and grey level held to the manifests and to the clean shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.class_selection import choose_classes, portion
from pipeline.config.released_splits import released_splits
from pipeline.operations.shard_inspection import Row, compare, inspect
from pipeline.shards.tables import read_table
from pipeline.storage.layout import CHOSEN, MANIFEST, SAMPLES
from pipeline.storage.records import counted, digest
from pipeline.storage.run import Run
from pipeline.storage.stage import Manifest, Shard
from sep.budget import UNITS, Budget
from sep.methods.registry import METHODS


@dataclass(frozen=True)
class Verification:
    """The outcome: the number of images and shards, and every fault as `stage/shard: key (original name): what is wrong`."""

    images: int
    unprotected: int  # of them, released as they are, by their class or beyond a share of it
    shards: int
    budget: Budget
    largest_change: int  # in levels
    most_used: int  # of the budget, in its own unit
    faults: tuple[str, ...]

    def __str__(self) -> str:
        """Return every fault on its line, then one line of summary."""
        others = f" and {self.unprotected} released as they are" if self.unprotected else ""
        images = f"{self.images - self.unprotected} protected images{others}"
        if self.budget.norm == "linf":
            change = f"largest change {self.largest_change} of {self.budget.limit} levels"
        else:
            unit = UNITS[self.budget.norm]
            change = f"largest change {self.largest_change} levels, at most {self.most_used} of {self.budget.limit} {unit} in an image"
        seen = f"{images} in {self.shards} shards, {change}"
        return "\n".join((*self.faults, f"{seen}: " + (counted(len(self.faults), "fault") if self.faults else "as recorded, no fault")))


def verify(run: Run, base: Manifest | None = None) -> Verification:
    """Recompute everything that the manifests and tables of the pack and protect stages record of the images.

    Args:
        run: a run, or an addition to one.
        base: of the protect stage of the run, if `run` is an addition.

    Raises:
        ValueError: a stage has not finished, or a manifest or table is missing or damaged.
    """
    pack, protect = Manifest.load(run, "pack"), Manifest.load(run, "protect")
    budget = _budget(run, pack, protect)
    classes = choose_classes(protect.asked["protect"].get("classes", ()), pack.counts["classes"], "protect.classes")
    old = base is not None and protect.asked["protect"].get("added_to") != base.digest
    clean_table, protected_table = _table(run, "pack"), _table(run, "protect")
    splits = _splits(pack, protect)
    protected_shards = {shard.name: shard for shards in protect.shards.values() for shard in shards}
    faults = [f"protect/{MANIFEST}: made with another release of the run than the present one"] if old else []
    faults += [*_manifest_faults(run, pack, protect), *_table_faults(pack, clean_table), *_table_faults(protect, protected_table)]
    kept, found_of_share = _beyond_share(run, pack, protect, clean_table, classes)
    faults += found_of_share
    clean_by_shard, protected_by_shard = _by_shard(clean_table), _by_shard(protected_table)
    nothing = replace(budget, limit=0)
    images = unprotected = chosen = largest = most_used = 0
    for shard in _shards(pack, splits):
        clean_rows, protected_rows = _rows(clean_by_shard, shard.name), _rows(protected_by_shard, shard.name)
        clean = inspect(run, "pack", shard, clean_rows, clean_rows)
        if shard.name in protect.missing:
            faults += [*clean.conclude(), f"protect/{shard.name}: missing: crafting it failed, and the run continued without it"]
            continue
        protected = inspect(run, "protect", protected_shards.get(shard.name, shard), clean_rows, protected_rows)
        others = {key for key, row in clean_rows.items() if row["label"] not in classes or key in kept}
        for key in sorted(clean.samples.keys() & protected.samples.keys()):
            allowed = nothing if key in others else budget
            change, found = compare(clean.samples[key], protected.samples[key], protected_rows.get(key, {}), allowed)
            largest, most_used = max(largest, change.levels), max(most_used, change.used)
            for text in found:
                protected.fault(key, text)
        chosen += len(clean_rows) - len(others)
        images += len(protected.samples)
        unprotected += len(others & protected.samples.keys())
        faults += [*clean.conclude(), *protected.conclude()]
    for shard in _shards(pack, set(pack.shards) - set(splits)):
        rows = _rows(clean_by_shard, shard.name)
        faults += inspect(run, "pack", shard, rows, rows).conclude()
    if protect.counts.get("protected") != chosen:
        faults.append(
            f"protect/{MANIFEST}: {protect.counts.get('protected')} protected images recorded, but {chosen} clean ones were to be"
        )
    if protect.counts.get("linf_levels") != largest:
        faults.append(f"protect/{MANIFEST}: largest change {largest} levels, recorded {protect.counts.get('linf_levels')}")
    if protect.counts.get("classes") != list(classes):
        faults.append(f"protect/{MANIFEST}: protected classes {protect.counts.get('classes')}, asked for {list(classes)}")
    if protect.counts.get("budget") != asdict(budget):
        faults.append(f"protect/{MANIFEST}: budget {protect.counts.get('budget')}, but the method's is {asdict(budget)}")
    return Verification(images, unprotected, len(protected_shards), budget, largest, most_used, tuple(faults))


def verify_addition(addition: Run, base: Manifest) -> tuple[str, bool]:
    """Return the report of an addition, and whether it is complete and without fault."""
    try:
        found = verify(addition, base)
    except ValueError as error:  # not finished; the rest is still reported
        return str(error), False
    return str(found), not found.faults


def _splits(pack: Manifest, protect: Manifest) -> tuple[str, ...]:
    return released_splits(protect.asked["protect"].get("splits", ("train",)), pack.asked)


def _shards(manifest: Manifest, splits: Iterable[str]) -> list[Shard]:
    return [shard for split in splits for shard in manifest.shards.get(split, [])]


def _budget(run: Run, pack: Manifest, protect: Manifest) -> Budget:
    """Return the budget of the method that was asked for.

    Raises:
        ValueError: the manifest does not say which, or how much.
    """
    asked = protect.asked.get("protect", {})
    eps_levels, method = asked.get("eps_levels"), asked.get("method")
    if not isinstance(eps_levels, int):
        raise ValueError(f"{run.uri}/protect/{MANIFEST} names no eps_levels: delete that folder and run the stage again")
    if method not in METHODS:
        raise ValueError(f"{run.uri}/protect/{MANIFEST} names the method {method!r}; known are {', '.join(METHODS)}")
    return METHODS[method].budget(eps_levels, (3, pack.counts["height"], pack.counts["width"]))


def _beyond_share(run: Run, pack: Manifest, protect: Manifest, clean: pa.Table, classes: Sequence[int]) -> tuple[frozenset[str], list[str]]:
    """Return the keys of protected classes that are beyond the share that was asked for, and faults of the record of those within it."""
    share, where = protect.asked["protect"].get("share", 1), f"protect/{CHOSEN}"
    if share == 1:
        return frozenset(), []
    names = pa.array([shard.name for shard in _shards(pack, _splits(pack, protect))])
    rows = clean.filter(pc.and_(pc.is_in(clean["shard"], names), pc.is_in(clean["label"], pa.array(classes, clean["label"].type))))
    labels = dict(zip(rows["key"].to_pylist(), rows["label"].to_pylist(), strict=True))
    try:
        chosen = read_table(run.child("protect"), CHOSEN)["key"].to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{run.uri}/{where} is missing or damaged ({error}): delete that folder and run the stage again") from error
    faults = [] if digest(chosen) == protect.counts.get("chosen_sha256") else [f"{where}: not as recorded in {MANIFEST}"]
    faults += [f"{where}: {key}: not in a class that is protected" for key in chosen if key not in labels]
    every, found = Counter(labels.values()), Counter(labels[key] for key in {*chosen} & labels.keys())
    for label, count in sorted(every.items()):
        if found[label] != (expected := portion(share, count)):
            faults.append(f"{where}: {found[label]} of the {count} images of class {label}, expected {expected}")
    return frozenset(labels.keys() - set(chosen)), faults


def _manifest_faults(run: Run, pack: Manifest, protect: Manifest) -> Iterator[str]:
    """Yield contradictions between the manifests, within them, and with the files in the folders."""
    for manifest in (pack, protect):
        where = f"{manifest.stage}/{MANIFEST}"
        if digest(manifest.asked) != manifest.hash:
            yield f"{where}: its configuration was altered"
        listed = {shard.name for shards in manifest.shards.values() for shard in shards}
        for name in sorted(set(run.child(manifest.stage).names()) - listed):
            if name.endswith(".tar"):
                yield f"{manifest.stage}/{name}: not in the manifest"
    for split in ("train", "test"):
        if pack.counts.get(split) != sum(shard.count for shard in pack.shards.get(split, [])):
            yield f"pack/{MANIFEST}: {pack.counts.get(split)} {split} images recorded, but its shards hold another number"
    splits = _splits(pack, protect)
    expected = sum(shard.count for shard in _shards(pack, splits) if shard.name not in protect.missing)
    if protect.counts.get("images") != expected:
        yield f"protect/{MANIFEST}: {protect.counts.get('images')} images recorded, but {expected} clean ones"
    clean = {shard.name for shard in _shards(pack, splits)}
    protected = {shard.name for shard in _shards(protect, protect.shards)}
    clean -= set(protect.missing)
    for name in sorted(clean ^ protected):
        yield f"protect/{name}: " + ("not in the manifest" if name in clean else "in the manifest, but there is no such clean shard")
    for name, recorded in protect.asked.get("inputs", {}).items():
        try:
            if Manifest.load(run, name).digest != recorded:
                yield f"{name}/{MANIFEST}: not the one the protected images were made from"
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


def _table(run: Run, stage: str) -> pa.Table:
    own = {"pack": ["source"], "protect": ["clean_sha256", "linf_levels"]}
    try:
        return read_table(run.child(stage), SAMPLES, ["key", "label", "shard", "sha256", *own[stage]])
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{run.uri}/{stage}/{SAMPLES} is missing or damaged ({error}): delete that folder and run the stage again"
        ) from error


def _by_shard(table: pa.Table) -> dict[str, pa.Table]:
    """Return the rows of each shard without copying, in one pass for all shards."""
    ordered, begun, slices = table.sort_by("shard"), 0, {}
    for count in ordered["shard"].value_counts().to_pylist():
        slices[count["values"]] = ordered.slice(begun, count["counts"])
        begun += count["counts"]
    return slices


def _rows(tables: Mapping[str, pa.Table], shard: str) -> dict[str, Row]:
    return {row["key"]: row for row in tables[shard].to_pylist()} if shard in tables else {}
