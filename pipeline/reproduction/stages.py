"""The stages of the paper's protocol on one device: decoded data, surrogate, class means, protected images, victims.

Legend: B images, H W pixels, K classes, D feature width. Every stage leaves files and does only what they lack.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pipeline.config.seeds import derive, generator
from pipeline.reproduction import resident
from pipeline.reproduction.machine import machine
from pipeline.reproduction.pieces import load, load_json, measured, save
from pipeline.reproduction.protocol import Run
from pipeline.reproduction.resident import Split
from pipeline.reproduction.training import train, weights
from sep.budget import check
from sep.craft import craft
from sep.ensemble import Member, class_sums, compile_together, freeze
from sep.execution import Kernels
from sep.models import Network
from sep.objective import shifted

log = logging.getLogger(__name__)

MEANS_BATCH = 500  # images


def make_data(run: Run) -> None:
    """Decode the Parquet files, once.

    Raises:
        ValueError: they are not understood.
    """
    if load(run.out / "data.pt") is not None:
        return
    run.clock.begin()
    with measured(run.device) as cost:
        splits = {
            name: resident.read(run.source, name, limit)
            for name, limit in (("train", run.settings.limit_train), ("test", run.settings.limit_test))
        }
        classes = int(splits["train"].labels.max()) + 1
        if classes < 2 or int(splits["test"].labels.max()) >= classes:
            raise ValueError(f"the training images have {classes} classes: at least 2 are needed, and all those of the test images")
        empty = (splits["train"].labels.bincount() == 0).nonzero().flatten().tolist()
        if empty:
            raise ValueError(f"labels must be 0 to {classes - 1} without gaps, and there are no training images of the classes {empty}")
        tensors = {f"{name}_{kind}": getattr(split, kind) for name, split in splits.items() for kind in ("images", "labels")}
    shape = " x ".join(map(str, splits["train"].images.shape[2:]))
    counts = [len(split.labels) for split in splits.values()]
    log.info("data: %d training and %d test images, %s pixels, %d classes, %.1f s", *counts, shape, classes, cost["seconds"])
    kept = {**tensors, **resident.statistics(splits["train"].images), "num_classes": classes}
    save(run.out / "data.pt", {**kept, "cost": cost, "machine": machine()})


def make_surrogate(run: Run) -> None:
    """Train the surrogate and keep every epoch's weights, if the method follows any."""
    if not run.settings.ensemble_epochs():
        return
    if load_json(run.out / "surrogate.json") is not None:
        return
    run.clock.begin()
    training = run.training(run.settings.epochs, derive(run.settings.seed, "surrogate"))
    train(training, run.split("train"), None, run.out, "surrogate", run.clock)


def frozen(run: Run, epoch: int, kernels: Kernels) -> Network:
    """One checkpoint of the finished surrogate, on the device.

    Raises:
        ValueError: it is not there or damaged, or the surrogate has not finished.
    """
    if load_json(run.out / "surrogate.json") is None:  # an epoch after the last state that was kept is trained again, and may differ
        raise ValueError(f"{run.out}/surrogate.json is not there, the surrogate has not finished: run the stage `surrogate`")
    path = weights(run.out, "surrogate", epoch)
    state = load(path)
    if state is None:
        raise ValueError(
            f"{path} is not there or damaged: run the stage `surrogate`, or, if that had finished, begin again with another --out"
        )
    network = run.training(run.settings.epochs, 0).build()
    network.load_state_dict(state["network"])
    return freeze(network, kernels).to(run.device)


def means_file(run: Run, epoch: int) -> Path:
    """The file of one checkpoint's class means."""
    return run.out / "means" / f"epoch_{epoch:04d}.pt"


def make_means(run: Run) -> None:
    """Class means `(K, D)` of every checkpoint of the ensemble, over all training images as they are."""
    if not run.settings.craft(1).aligns_features:
        return
    train_split = None
    for epoch in run.settings.ensemble_epochs():
        if load(means_file(run, epoch)) is not None:
            continue
        if train_split is None:
            run.clock.begin()
            train_split = run.split("train")
        with measured(run.device) as cost:
            sums, counts = class_sums(frozen(run, epoch, "fused"), train_split.in_order(MEANS_BATCH), run.data["num_classes"])
        save(means_file(run, epoch), {"means": (sums / counts[:, None]).float(), "cost": cost, "machine": machine()})
        log.info("means: of epoch %d, %.1f s", epoch + 1, cost["seconds"])
        run.clock.check(cost["seconds"])


def ensemble(run: Run) -> list[Member]:
    """The checkpoints, each with its own class means where the method needs them.

    Raises:
        ValueError: a checkpoint or its means are not there.
    """
    epochs = run.settings.ensemble_epochs()
    networks = [frozen(run, epoch, run.kernels) for epoch in epochs]
    if networks and run.kernels == "compiled":
        compile_together(networks)
    if not run.settings.craft(1).aligns_features:
        return [Member(network) for network in networks]
    means = [load(means_file(run, epoch)) for epoch in epochs]
    if None in means:
        raise ValueError(f"class means are missing in {run.out}/means: run the stage `means`")
    return [Member(network, kept["means"].to(run.device)) for network, kept in zip(networks, means, strict=True) if kept]


def chunks(run: Run, eps_levels: int) -> dict[Path, slice]:
    """The files of a budget, and which training images are in each: as the files that are there say, and the others as asked for."""
    folder, count, files = run.out / "craft" / f"eps{eps_levels}", len(run.data["train_labels"]), {}
    there = {start: stop for start, stop in (map(int, path.stem.split("-")) for path in folder.glob("[0-9]*.pt"))}
    start = 0
    while start < count:
        free = min((other for other in there if other > start), default=count)
        stop = there.get(start) or min(start + run.chunk_images, free)
        files[folder / f"{start:06d}-{stop:06d}.pt"] = slice(start, stop)
        start = stop
    return files


def make_protected(run: Run) -> None:
    """Craft the chunks that are not there."""
    members: list[Member] | None = None
    for eps_levels in run.eps_levels:
        config = dataclasses.replace(run.settings.craft(eps_levels), kernels=run.kernels)
        files = chunks(run, eps_levels)
        missing = [path for path in files if load(path) is None]
        log.info("craft: %d/255, %d of %d chunks to do", eps_levels, len(missing), len(files))
        for number, path in enumerate(missing, len(files) - len(missing) + 1):
            rows = files[path]
            if members is None:
                run.clock.begin()
                members = ensemble(run)
            clean, labels = run.data["train_images"][rows], run.data["train_labels"][rows]
            draws = generator(run.settings.seed, "craft", eps_levels, rows.start)
            with measured(run.device) as cost:
                protected = craft(members, clean, shifted(labels, run.data["num_classes"]), config, draws, run.batch_size)
            check(protected, clean, eps_levels)
            gradients = config.gradients_per_image(len(members)) * len(labels)
            how = {"kernels": run.kernels, "cost": cost, "machine": machine()}
            save(path, {"images": protected, "gradients": gradients, **how})
            log.info("craft: %d/255, chunk %d of %d, %d images, %.1f s", eps_levels, number, len(files), len(labels), cost["seconds"])
            run.clock.check(cost["seconds"])


def protected_images(run: Run, eps_levels: int) -> Tensor:
    """The release of a budget as its files have it, `(B, 3, H, W)` uint8, held to the budget.

    Raises:
        ValueError: a chunk is not there, or breaks the budget.
    """
    kept = {path: load(path) for path in chunks(run, eps_levels)}
    for path, chunk in kept.items():
        if chunk is None:
            raise ValueError(f"{path} is not there or damaged: run the stage `craft`")
    images = torch.cat([chunk["images"] for chunk in kept.values() if chunk])
    check(images, run.data["train_images"], eps_levels)
    return images


def victims(run: Run) -> dict[str, tuple[int | None, int]]:
    """Every victim by name, with its budget (None: clean images) and seed; those of one seed start alike and see images in one order."""
    return {
        f"victims/{'clean' if eps is None else f'eps{eps}'}-seed{seed}": (eps, seed)
        for seed in run.victim_seeds
        for eps in (None, *run.eps_levels)
    }


def make_victims(run: Run) -> None:
    """Train the victims that are not trained, on the images as stored."""
    tests = None
    for name, (eps_levels, seed) in victims(run).items():
        if load_json(run.out / f"{name}.json") is not None:
            continue
        images = run.split("train")
        if eps_levels is not None:
            images = Split(protected_images(run, eps_levels).to(run.device), images.labels)
        if tests is None:
            run.clock.begin()
            tests = run.split("test")
        train(run.training(run.settings.victim_epochs, derive(run.settings.seed, "victim", seed)), images, tests, run.out, name, run.clock)


STAGES: dict[str, Callable[[Run], None]] = {
    "data": make_data,
    "surrogate": make_surrogate,
    "means": make_means,
    "craft": make_protected,
    "victims": make_victims,
}
