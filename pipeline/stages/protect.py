"""Stage 3: checkpoints and clean shards become protected shards, each checked in integers on what storage gives back.

Images that are not to be protected, by their class or beyond a share of it, are released as they are, so that the shards are always the
whole release.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from cluster.executor import Executor
from cluster.resources import Resources
from cluster.work import Capacity, Work, WorkFailed
from pipeline.config.class_selection import protected_classes
from pipeline.config.marks import without
from pipeline.config.released_splits import released_splits
from pipeline.config.schema import ProtectConfig, RunConfig, deciding
from pipeline.config.sight import looked_through, recorded_input, recorded_views
from pipeline.protection.checkpoints import Checkpoint, Ensemble, choose, read_index
from pipeline.protection.choice import choose_images
from pipeline.protection.crafting import CraftingTask
from pipeline.protection.gradient_similarity import write_similarity
from pipeline.protection.kernel_choice import decide
from pipeline.protection.preparation import kept, prepare
from pipeline.protection.preparation_files import Prepared
from pipeline.protection.release import PROTECT, PROTECTED_SCHEMA
from pipeline.protection.site import Site
from pipeline.shards.finished_shards import FinishedShard, read_finished_shards, write_rows
from pipeline.storage.layout import PARTS, SAMPLES, SIMILARITY, split_of
from pipeline.storage.records import digest
from pipeline.storage.run import Run
from pipeline.storage.stage import Manifest, Shard, Stage
from pipeline.training.initial import recorded_training
from sep.budget import Budget
from sep.choices import Precision
from sep.execution import resolve
from sep.views.registry import PLAIN

log = logging.getLogger(__name__)


def execute(config: RunConfig, folder: Run, executor: Executor) -> Manifest:
    """Protect every shard that has no protected version yet.

    Raises:
        ValueError: an earlier stage has not finished, the stage was done with another configuration, the surrogate was trained through
            other views, or a class is unknown.
        WorkFailed: shards failed, after all others were finished.
    """
    config, pack, protect = looked_through(config), Manifest.load(folder, "pack"), config.protect.resolved()
    names = pack.counts["classes"]
    classes = protected_classes(config, names)
    section = without(deciding(protect), () if protect.share < 1 else ("share", "chosen"))
    if protect.kind.views:
        section |= recorded_views(config) | recorded_input(config.input_size)
    surrogate = Manifest.load(folder, "surrogate") if protect.kind.surrogate else None
    if surrogate:
        _check_views(config, surrogate)
    if protect.kind.noise_rounds:  # the network trained against the noise has a surrogate's settings
        section["training"] = recorded_training(config.surrogate)
    inputs = (pack, surrogate) if surrogate else (pack,)
    stage = Stage(folder, "protect", section, seed=config.seed, inputs=inputs, overwrite=config.overwrite)
    if stage.manifest:
        return stage.manifest
    resources = executor.connect(config.workers)
    capacity = _capacity(config, resources)
    index = read_index(folder, surrogate) if surrogate else {}
    checkpoints = choose(index, protect.per_network, protect.epochs)
    ensemble = _ensemble(folder, protect, checkpoints, resources, config.views, config.input_size)
    precision = _precision(protect, ensemble, executor, capacity)
    protect = dataclasses.replace(protect, precision=precision)
    kernels = decide(stage.folder, protect, ensemble, pack.shards["train"], executor, capacity, resources.tasks)
    protect, ensemble = dataclasses.replace(protect, kernels=kernels), dataclasses.replace(ensemble, kernels=kernels)
    if index and not stage.folder.exists(SIMILARITY):
        write_similarity(stage.folder, ensemble, index, len(names), pack.shards["train"][0], executor, capacity)
    clean, decided = folder.child("pack"), dataclasses.replace(config, protect=protect)
    decides = digest([stage.hash, precision, *([kernels] if kernels != config.protect.kernels else [])])
    shards = [shard for split in released_splits(protect.splits, pack.asked) for shard in pack.shards[split]]
    site = Site(decided, decides, stage.folder, clean, pack, tuple(shards), classes, ensemble, resources, capacity)
    site = dataclasses.replace(site, chosen=choose_images(site, executor))
    prepared = prepare(site, executor)
    made_from = digest([decides, prepared.digest, *filter(None, [site.chosen])])
    task = CraftingTask(
        ensemble=ensemble,
        config=protect,
        seed=config.seed,
        made_from=made_from,
        classes=classes,
        clean=clean,
        out=stage.folder,
        prepared=stage.folder,
        prepared_sha256=prepared.digest,
        budget=budget_of(protect, pack),
        chosen=site.chosen,
    )
    return _craft_all(task, stage, shards, config, executor, capacity, prepared)


def add(config: RunConfig, run: Run, folder: Run, executor: Executor) -> Manifest:
    """Protect images added to a finished run with what that run was protected with.

    Args:
        config: of the run.
        run: the run.
        folder: of the addition, which is packed.
        executor: where images are protected.

    Raises:
        ValueError: the run is not finished, or the addition was begun with another configuration.
        WorkFailed: shards failed, after all others were finished.
    """
    base, pack = Manifest.load(run, "protect"), Manifest.load(folder, "pack")
    kind = config.protect.kind
    section = {**base.asked["protect"], "added_to": base.digest}
    stage = Stage(folder, "protect", section, seed=config.seed, inputs=(pack,), overwrite=config.overwrite)
    if stage.manifest:
        return stage.manifest
    resources = executor.connect(config.workers)
    protect = dataclasses.replace(config.protect.resolved(), precision=base.counts["precision"], kernels=base.counts["kernels"])
    checkpoints = choose(read_index(run) if kind.surrogate else {}, protect.per_network, protect.epochs)
    ensemble = _ensemble(run, protect, checkpoints, resources, base.counts.get("views", PLAIN), base.counts.get("input_size"))
    prepared, clean, shards = kept(run.child("protect"), config), folder.child("pack"), pack.shards["train"]
    classes, capacity = tuple(base.counts["classes"]), _capacity(config, resources)
    decided = dataclasses.replace(config, protect=protect)
    site = Site(decided, stage.hash, stage.folder, clean, pack, tuple(shards), classes, ensemble, resources, capacity)
    task = CraftingTask(
        ensemble=ensemble,
        config=protect,
        seed=config.seed,
        made_from=stage.hash,
        classes=classes,
        clean=clean,
        out=stage.folder,
        prepared=run.child("protect"),
        prepared_sha256=prepared.digest,
        budget=budget_of(protect, pack),
        chosen=choose_images(site, executor),
    )
    return _craft_all(task, stage, shards, config, executor, capacity, prepared)


def _check_views(config: RunConfig, surrogate: Manifest) -> None:
    """Check that the surrogate was trained through the views that images are to be protected for, and at the same input size."""
    asked = surrogate.asked["surrogate"]
    if (side := asked.get("input_size")) != config.input_size:
        raise ValueError(
            f"input-size = {config.input_size}, but the surrogate was trained with {side}: give that, or redo the stage 'surrogate' with "
            "--overwrite"
        )
    trained = asked.get("views", list(PLAIN))
    if trained != list(config.views):
        raise ValueError(
            f"--views {' '.join(config.views)}, but the surrogate was trained through {' '.join(trained)}: give these, or redo the stage "
            "'surrogate' with --overwrite"
        )


def budget_of(config: ProtectConfig, pack: Manifest) -> Budget:
    """Return the budget of one packed image."""
    return config.budget((3, pack.counts["height"], pack.counts["width"]))


def _ensemble(
    run: Run,
    config: ProtectConfig,
    checkpoints: tuple[Checkpoint, ...],
    resources: Resources,
    views: Sequence[str],
    input_size: int | None,
) -> Ensemble:
    speed = config.kernels, bool(resources.gpu), config.tasks_per_gpu, config.members_per_step
    return Ensemble(run, checkpoints, *speed, tuple(views), input_size)


def _precision(config: ProtectConfig, ensemble: Ensemble, executor: Executor, capacity: Capacity) -> Precision:
    """Decide the precision once for all shards, so that a release never mixes two."""
    if config.precision != "auto" or not ensemble.gpu:
        return resolve(config.precision, torch.device("cpu"))
    answers = executor.run_all(_resolve, [Work("precision", (config, ensemble))], what="precision", unit="GPUs", capacity=capacity)
    return dict(answers)["precision"]


def _resolve(config: ProtectConfig, ensemble: Ensemble) -> Precision:
    """Resolve the precision on the GPU that computes. This is the body of a task."""
    return resolve(config.precision, ensemble.device)


def _capacity(config: RunConfig, resources: Resources) -> Capacity:
    if not config.protect.kind.surrogate:  # no gradients, and no need of a GPU
        return Capacity(config.workers)
    each = config.protect.tasks_per_gpu if resources.gpu else 1
    return Capacity(config.workers and config.workers * each, gpus=resources.gpu / each)


def _craft_all(
    task: CraftingTask,
    stage: Stage,
    shards: Sequence[Shard],
    config: RunConfig,
    executor: Executor,
    capacity: Capacity,
    prepared: Prepared,
) -> Manifest:
    """Craft the unfinished shards, and finish the stage."""
    parts = read_finished_shards(stage.folder, [shard.name for shard in shards], task.made_from, executor, Capacity(config.workers))
    missing = [shard for shard in shards if shard.name not in parts]
    log.info("protect: %d of %d shards to craft", len(missing), len(shards))
    begun, crafted = time.monotonic(), 0
    try:
        pieces = [Work(shard.name, (task, shard), shard.count) for shard in missing]
        for name, part in executor.run_all(PROTECT, pieces, what="protect", capacity=capacity):
            parts[name] = part
            crafted += part.extra["protected"]
    except WorkFailed as failed:
        if not config.keep_going or not parts:
            raise
        log.error("protect: continued without %d of %d shards", len(failed.causes), len(shards))
    return _finish(task, stage, shards, parts, crafted / (time.monotonic() - begun), prepared)


def _finish(
    task: CraftingTask, stage: Stage, shards: Sequence[Shard], parts: Mapping[str, FinishedShard], rate: float, prepared: Prepared
) -> Manifest:
    """Combine the finished shards into one table and the manifest."""
    config, checkpoints = task.config, task.ensemble.checkpoints
    ordered = [parts[shard.name] for shard in shards if shard.name in parts]
    write_rows(stage.folder, SAMPLES, ordered, PROTECTED_SCHEMA)
    protected = sum(part.extra["protected"] for part in ordered)
    psnr, changed = (math.fsum(part.extra["psnr_db"][i] for part in ordered) for i in range(2))
    counts: dict[str, Any] = {
        "images": sum(part.shard.count for part in ordered),
        "protected": protected,
        "classes": list(task.classes),
        "method": config.method,
        "targets": config.targets,
        "views": list(task.ensemble.views if config.kind.views else PLAIN),
        "eps_levels": config.eps_levels,
        "steps": config.steps,
        "precision": config.precision,
        "kernels": config.kernels,
        "networks": list(dict.fromkeys(checkpoint.network for checkpoint in checkpoints)),
        "epochs": sorted({checkpoint.epoch for checkpoint in checkpoints}),
        "members": len(checkpoints),
        "gradients": protected * config.gradients_per_image(len(checkpoints), prepared.found.get("noise_rounds")),
        "linf_levels": max(part.extra["linf_levels"] for part in ordered),
        "psnr_db": psnr / max(1, changed),
        "budget": dataclasses.asdict(task.budget),
        **({"input_size": task.ensemble.input_size} if task.ensemble.input_size else {}),
        **({"share": config.share, "chosen": config.chosen, "chosen_sha256": task.chosen} if task.chosen else {}),
        **prepared.found,
    }
    left_out = [shard.name for shard in shards if shard.name not in parts]
    timing = {"images_per_second": rate, "preparation_seconds": prepared.seconds}
    timing["crafting_seconds"] = math.fsum(part.extra["seconds"] for part in ordered)
    released: dict[str, list[Shard]] = {"train": []}
    for part in ordered:
        released.setdefault(split_of(part.shard.name), []).append(part.shard)
    manifest = stage.finish(counts, released, missing=left_out, **timing)
    if not left_out:
        stage.folder.child(PARTS).delete()
    return manifest
