"""Stage 1: any image source becomes clean WebDataset shards of upright 8-bit RGB."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from cluster.executor import Executor
from cluster.work import Capacity, Work
from pipeline.config.schema import SPLITS, PackConfig, RunConfig, to_tree
from pipeline.config.sight import packed_at_own_size
from pipeline.shards.finished_shards import FinishedShard, read_finished_shard, write_finished_shard, write_rows
from pipeline.shards.pixels import Statistics, encode_png, pixels_sha256
from pipeline.shards.shard import Sample, write_shard
from pipeline.shards.sizes import is_own_size, size_counts
from pipeline.shards.tables import rows_to_table, write_table
from pipeline.sources import decoding
from pipeline.sources.dataset import Dataset, Entry, Reader, SourceError, check_classes
from pipeline.sources.scan import scan
from pipeline.sources.sharding import images_by_shard, most_file_bytes, pixels_of
from pipeline.stages.suitability import check_scanned
from pipeline.storage.folder import Folder
from pipeline.storage.layout import PARTS, QUARANTINE, SAMPLES
from pipeline.storage.records import digest, shown
from pipeline.storage.stage import Manifest, Shard, Stage

log = logging.getLogger(__name__)
LONGEST = 50  # times as long as wide, of pictures of their own size: networks see a square of them

SAMPLES_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("split", pa.string()),
        ("label", pa.int64()),
        ("class_name", pa.string()),
        ("source", pa.string()),
        ("shard", pa.string()),
        ("sha256", pa.string()),
        ("height", pa.int64()),
        ("width", pa.int64()),
    ]
)
QUARANTINE_SCHEMA = pa.schema([("source", pa.string()), ("reason", pa.string())])


def execute(config: RunConfig, folder: Folder, executor: Executor) -> Manifest:
    """Pack the configured source into the run's `pack` folder, unless that is done already.

    Args:
        config: of the whole run.
        folder: the run's.
        executor: where images are decoded and encoded.

    Raises:
        SourceError: the source cannot be packed as it is; nothing is left, so that a corrected command starts afresh.
        ValueError: the folder was made with another configuration, or a later stage could not use the images.
        WorkFailed: a task failed for good; finished work is saved.
    """
    own_size = packed_at_own_size(config)
    stage = Stage(folder, "pack", section=_section(config, config.data, own_size), seed=config.seed, overwrite=config.overwrite)
    if stage.manifest is not None:
        return stage.manifest
    try:
        dataset = scan(config)
        check_scanned(config, dataset)
        parts = _pack(stage, dataset, config, executor, own_size)
        _check(dataset, parts)
        return _finish(stage, dataset, parts, own_size)
    except ValueError as error:
        if isinstance(error, SourceError) or not stage.folder.child(PARTS).names():
            stage.clear("its images cannot be packed")
        raise


def add(config: RunConfig, run: Folder, folder: Folder, dataset: Dataset, executor: Executor) -> Manifest:
    """Pack images that are added to a run into the `pack` folder of the addition, unless that is done already.

    Args:
        config: of the run.
        run: the run.
        folder: of the addition.
        dataset: from `sources.scan_more`.
        executor: as in `execute`.

    Raises:
        SourceError: none of the images can be used, or their size is another than the run's; nothing is left.
        WorkFailed: a task failed for good; finished work is saved.
    """
    base = Manifest.load(run, "pack").counts
    assert config.add is not None
    own_size = is_own_size(base)
    stage = Stage(folder, "pack", section=_section(config, config.add, own_size), seed=config.seed, overwrite=config.overwrite)
    if stage.manifest is not None:
        return stage.manifest
    try:
        parts = _pack(stage, dataset, config, executor, own_size)
        sizes = {size for part in parts.values() for size in part.extra["sizes"]}
        if sizes and not own_size and sizes != {f"{base['height']}x{base['width']}"}:
            raise SourceError(f"--add: images are {', '.join(sizes)} (height x width), those of the run {base['height']}x{base['width']}")
        if not any(part.shard.count for part in parts.values()):
            raise SourceError(f"--add: no image could be used{_why(_refused(parts))}")
        return _finish(stage, dataset, parts, own_size)
    except SourceError:
        stage.clear("its images cannot be packed")
        raise


def _section(config: RunConfig, data: str, own_size: bool) -> dict[str, Any]:
    """Return what the stage records of the configuration."""
    return {"data": data, **to_tree(config.pack), **({"own_size": True} if own_size else {})}


def _pack(stage: Stage, dataset: Dataset, config: RunConfig, executor: Executor, own_size: bool) -> dict[str, FinishedShard]:
    """Return the finished shards by name."""
    executor.connect(config.workers)
    pixels = _pixels(dataset, config, executor) if own_size else None
    pieces = [
        Work(name, (stage.folder, name, entries, dataset.classes, dataset.reader, config.pack, stage.hash, own_size), units=len(entries))
        for name, entries in images_by_shard(dataset, config.pack.shard_images, pixels).items()
    ]
    log.info("pack: %d images of %d classes into %d shards", len(dataset.entries), len(dataset.classes), len(pieces))
    parts: dict[str, FinishedShard] = {}
    sizes: Counter[str] = Counter()
    for name, part in executor.run_all(pack_shard, pieces, what="pack", capacity=Capacity(config.workers)):
        parts[name] = part
        sizes.update(part.extra["sizes"])
        if len(sizes) > 1 and not own_size:  # leaving the loop cancels the other tasks
            break
    if len(sizes) > 1 and not own_size:
        commonest = ", ".join(f"{size} ({n} images)" for size, n in sizes.most_common(5))
        raise SourceError(
            f"images must have one size, found {len(sizes)} so far (height x width): {commonest}: "
            "give --input-size N to protect them at their own size, for networks that see N pixels a side, or --pack.size N to resize the "
            "short side to N pixels and cut out the centre"
        )
    return parts


def _pixels(dataset: Dataset, config: RunConfig, executor: Executor) -> dict[str, int]:
    """Return the pixels of each image by its key, from the headers; 0 of an image that will be refused."""
    entries, each = sorted(dataset.entries, key=lambda entry: (entry.file, entry.start)), config.pack.shard_images
    groups = [entries[start : start + each] for start in range(0, len(entries), each)]
    pieces = [Work(f"{group[0].source} ...", (group, dataset.reader, config.pack.max_pixels), units=len(group)) for group in groups]
    measured = executor.run_all(pixels_of, pieces, what="sizes", capacity=Capacity(config.workers))
    return {key: count for _, found in measured for key, count in found.items()}


def pack_shard(
    folder: Folder,
    name: str,
    entries: list[Entry],
    classes: tuple[str, ...],
    reader: Reader,
    config: PackConfig,
    stage_hash: str,
    own_size: bool = False,
) -> FinishedShard:
    """Write one shard and its record, unless an earlier attempt left both; the body of a task.

    At their own size, images are stored as they came if that is exact. Otherwise, where they do not have one size, nothing is written,
    and the record only holds the sizes.
    """
    made_from = digest([stage_hash, classes, [[e.split, e.label, e.source, e.file, e.start, e.size] for e in entries]])
    if (finished := read_finished_shard(folder, name, made_from)) is not None:
        return finished
    samples: dict[str, Sample] = {}
    rows: dict[str, dict[str, Any]] = {}
    refused: list[tuple[str, str]] = []
    sizes: Counter[str] = Counter()
    statistics = Statistics()
    most_bytes = most_file_bytes(config.max_pixels)
    refused += [(e.source, e.fault) for e in entries if e.fault]
    refused += [(e.source, f"{e.size} bytes are more than any image of pack.max-pixels") for e in entries if e.size > most_bytes]
    for entry, content in reader.read([e for e in entries if e.size <= most_bytes and not e.fault]):
        try:
            pixels = decoding.decode(content, config.max_pixels) if isinstance(content, bytes) else content
        except decoding.Refused as refusal:
            refused.append((entry.source, str(refusal)))
            continue
        pixels = decoding.fit(pixels, config.size) if config.size else pixels
        height, width = pixels.shape[:2]
        if own_size and max(height, width) > LONGEST * min(height, width):
            refused.append((entry.source, f"{height} x {width} pixels: more than {LONGEST} times as long as wide"))
            continue
        sizes[f"{height}x{width}"] += 1
        if len(sizes) > 1 and not own_size:  # the stage will stop: go on only to report all sizes
            continue
        class_name, key = classes[entry.label], entry.key
        info = json.dumps({"class_name": class_name, "source": entry.source}, sort_keys=True).encode()
        image = decoding.stored(content, pixels) if own_size and isinstance(content, bytes) else encode_png(pixels)
        samples[key] = Sample(key, image, entry.label, info)
        values = (key, entry.split, entry.label, class_name, entry.source, name, pixels_sha256(pixels), height, width)
        rows[key] = dict(zip(SAMPLES_SCHEMA.names, values, strict=True))
        statistics.add(pixels)
    order = [entry.key for entry in entries if entry.key in samples]
    extra = {"sizes": dict(sizes), "refused": sorted(refused), "statistics": statistics.as_list()}
    if len(sizes) > 1 and not own_size:
        return FinishedShard(Shard(name, "", 0), "", extra)
    extra["labels"] = sorted([label, count] for label, count in Counter(rows[key]["label"] for key in order).items())
    shard = write_shard(folder, name, [samples[key] for key in order])[0] if order else Shard(name, "", 0)
    return write_finished_shard(folder, shard, rows_to_table([rows[key] for key in order], SAMPLES_SCHEMA), extra, made_from)


def _refused(parts: Mapping[str, FinishedShard]) -> list[tuple[str, str]]:
    return sorted((source, reason) for part in parts.values() for source, reason in part.extra["refused"])


def _packed(parts: Mapping[str, FinishedShard]) -> dict[str, Counter[int]]:
    """Return the number of images per split and label."""
    packed: dict[str, Counter[int]] = {split: Counter() for split in SPLITS}
    for name, part in parts.items():
        packed[name.split("-")[0]].update(dict(part.extra["labels"]))
    return packed


def _check(dataset: Dataset, parts: Mapping[str, FinishedShard]) -> None:
    packed, refused = _packed(parts), _refused(parts)
    if any(entry.split == "test" for entry in dataset.entries) and not packed["test"]:
        raise SourceError(f"no test image could be used{_why(refused)}")
    check_classes(dataset.classes, packed, _why(refused))


def _finish(stage: Stage, dataset: Dataset, parts: dict[str, FinishedShard], own_size: bool) -> Manifest:
    """Combine the finished shards into tables, counts and the manifest."""
    packed, refused = _packed(parts), _refused(parts)
    statistics = Statistics()
    for name, part in parts.items():
        if name.startswith("train"):
            statistics.merge(part.extra["statistics"])
    mean, std = statistics.mean_and_std()
    shards: dict[str, list[Shard]] = {
        split: [p.shard for name, p in sorted(parts.items()) if name.startswith(split) and p.shard.count] for split in SPLITS
    }
    _drop_unlisted(stage.folder, {shard.name for listed in shards.values() for shard in listed})
    write_rows(stage.folder, SAMPLES, [part for _, part in sorted(parts.items())], SAMPLES_SCHEMA)
    quarantine = [{"source": source, "reason": reason} for source, reason in refused]
    write_table(stage.folder, QUARANTINE, rows_to_table(quarantine, QUARANTINE_SCHEMA))
    sizes: Counter[str] = Counter()
    for part in parts.values():
        sizes.update(part.extra["sizes"])
    counts = {
        "train": packed["train"].total(),
        "test": packed["test"].total(),
        "classes": list(dataset.classes),
        **size_counts(sizes, own_size, statistics.pixels),
        "mean": mean,
        "std": std,
        "quarantined": len(refused),
    }
    summary = "packed %d train, %d test images of %d classes; %d quarantined (see %s/%s)"
    log.info(summary, counts["train"], counts["test"], len(dataset.classes), len(refused), stage.folder.uri, QUARANTINE)
    manifest = stage.finish(counts, shards)
    stage.folder.child(PARTS).delete()
    return manifest


def _why(refused: list[tuple[str, str]]) -> str:
    """Return the end of a message about missing images."""
    if not refused:
        return ""
    return f" ({len(refused)} images were refused: {shown([f'{source}: {reason}' for source, reason in refused[:3]])})"


def _drop_unlisted(folder: Folder, listed: set[str]) -> None:
    """Remove shards of an interrupted start from before the source shrank."""
    for name in folder.names():
        if name.endswith(".tar") and name not in listed:
            folder.remove(name)
