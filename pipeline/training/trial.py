"""One victim: an unauthorised trainer's network, trained on clean or protected images and tested on clean ones.

Legend: B images, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from cluster.deadline import NEVER, Deadline, TimeIsUp
from cluster.resources import Resources
from cluster.work import Report
from pipeline.config.marks import Mark, marked
from pipeline.config.schema import RunConfig, VictimConfig
from pipeline.config.seeds import derive, generator
from pipeline.config.sight import recorded_form, recorded_input, victim_side
from pipeline.shards.sizes import image_bytes
from pipeline.shards.tensors import Batch, in_order
from pipeline.storage.layout import trial_name
from pipeline.storage.records import digest
from pipeline.storage.run import Run
from pipeline.storage.stage import Manifest
from pipeline.training import trial_records
from pipeline.training.batches import Batches, InMemory, Split, fits, open_tests
from pipeline.training.initial import identity, new_network
from pipeline.training.states import StateFile
from pipeline.training.victim_images import VictimImages, bytes_per_value, loading
from sep.countermeasures.registry import Data, Plan, plan
from sep.execution import resolve, share_memory, use_cpu
from sep.fitting import Epoch, State, accuracy, fit
from sep.linear_probe import features_of, linear_probe
from sep.models import Network
from sep.train_config import TrainConfig

Tests = Callable[[], Iterable[Batch]]
FIRST = "first"  # in a state: the weights of the first stage's network, once that stage has ended
SEEN_TOGETHER = 50  # images whose features are computed at a time


@dataclass(frozen=True)
class Trial:
    """One combination of network, data, countermeasure and seed."""

    network: str
    data: Data
    countermeasure: str
    seed: int

    @property
    def name(self) -> str:
        """The name of the trial and its files."""
        return trial_name(self.network, self.data, self.countermeasure, self.seed)

    @property
    def trained(self) -> Trial:
        """The trial whose training gives this one's result too: clean images cannot be diluted, and a clean-only share is not protected."""
        name, data = plan(self.countermeasure).trained_as(self.data)
        return replace(self, countermeasure=name, data=data)


@dataclass(frozen=True, kw_only=True)
class VictimTask:
    """The inputs of one trial's training."""

    trial: Trial
    plan: Plan  # the countermeasures of `trial.trained`
    config: VictimConfig
    run_seed: int
    run: Run
    pack: Manifest
    protected: tuple[int, ...]  # labels of the protected classes
    train: Manifest  # of the stage whose shards are trained on
    release: Manifest
    made_from: str
    memory_limit_mb: int
    threads: int
    cache_gb: float
    gpu: bool
    input_size: int | None = None
    deadline: Deadline = NEVER


def task_of(
    trial: Trial, config: RunConfig, folder: Run, pack: Manifest, protect: Manifest, resources: Resources, at_once: int
) -> VictimTask:
    """Return a trial's task. A clean victim depends on nothing that was protected, and no victim depends on the other trials.

    Args:
        trial: one victim of the run.
        config: of the run.
        folder: of the run.
        pack: manifest of the clean shards.
        protect: manifest of the release.
        resources: what there is to compute on.
        at_once: number of trainings that share them.

    Raises:
        ValueError: the countermeasure is unknown, its pretrained network cannot be had, or it needs all images in memory, which they do
            not fit.
    """
    victim, gpu = config.victim, bool(resources.gpu)
    train = pack if trial.trained.data == "clean" else protect
    protected = tuple(protect.counts["classes"])
    adversary = plan(trial.trained.countermeasure)
    names = {field.name for field in fields(TrainConfig)} - {"precision", *marked(VictimConfig, Mark.SPEED)}
    training = {name: getattr(victim, name) for name in sorted(names)}
    decides = [trial.__dict__, training, config.seed, pack.digest, train.digest, protected, torch.__version__, gpu]
    decides += [{"revision": adversary.revision}] if adversary.revision else []
    decides += [{"initial": identity(victim.pretrained)}] if adversary.initial else []
    decides += [recorded_input(side)] if (side := victim_side(config)) else []
    decides += [form] if (form := recorded_form(config)) else []
    each = image_bytes(pack.counts) * bytes_per_value(adversary)
    decides += [] if fits(train.shards["train"], each, config.memory_limit_mb) else ["streamed"]
    if "streamed" in decides and any(part.costly for part in adversary.parts):
        name = f"victim.countermeasures: {trial.countermeasure} purifies images once, and needs them all in memory"
        raise ValueError(f"{name}: raise --memory-limit-mb")
    decides += [{"pairs": protect.digest}] if adversary.known and adversary.known.known_pairs else []
    # What `auto` comes to on a GPU, only that GPU knows; the outcome records it.
    precision = victim.precision if gpu else resolve(victim.precision, torch.device("cpu"))
    decides += [{"precision": precision}] if gpu or precision != "float32" else []
    return VictimTask(
        trial=trial,
        plan=adversary,
        config=victim,
        run_seed=config.seed,
        run=folder,
        pack=pack,
        protected=protected,
        train=train,
        release=protect,
        made_from=digest(decides),
        memory_limit_mb=config.memory_limit_mb,
        threads=resources.cpus_for(at_once, victim.trials_per_gpu),
        cache_gb=config.cache_gb,
        gpu=gpu,
        input_size=victim_side(config),
    )


def relabelled_accuracy(table: NDArray[np.int64]) -> float:
    """Return the percentage correct after the best one-to-one renaming of the predicted classes.

    Args:
        table: confusion counts `(rows, K)`, a row for each true class to look at.
    """
    truth, predicted = linear_sum_assignment(table, maximize=True)
    return 100 * float(table[truth, predicted].sum()) / float(table.sum())


def accuracy_per_class(table: Tensor) -> list[float | None]:
    """Return the percentage correct of each true class of a confusion table `(K, K)`; None for a class without test images."""
    return [accuracy(table, [label]) if int(count) else None for label, count in enumerate(table.sum(1))]


def train_victim(task: VictimTask, report: Report) -> None:
    """Train one victim and write its outcome as `victim/<trial>.json`.

    An interrupted start leaves its state as `victim/<trial>.pt`. The next start resumes from it and reaches the same outcome.

    Raises:
        ValueError: training diverged, or the pretrained network that it begins with cannot be had.
        TimeIsUp: the deadline has passed with epochs left for the next start.
    """
    use_cpu(task.threads)
    folder, protected = task.run.child("victim"), list(task.protected)
    file = StateFile(folder, task.trial.name, task.made_from)
    state = file.read() or {}
    accuracies, losses = state.get("accuracies", []), state.get("losses", [])
    seconds, waiting = state.get("seconds", 0.0), state.get("waiting_seconds", 0.0)
    begun = time.monotonic()
    for epoch, kept, last in epochs_of(task, state):
        seconds, waiting = seconds + time.monotonic() - begun, waiting + epoch.waiting_seconds
        if epoch.table is not None:
            accuracies.append(accuracy(epoch.table, protected))
            losses.append(epoch.result.loss)
            times = {"seconds": epoch.seconds, "waiting_seconds": epoch.waiting_seconds}
            report({"epoch": epoch.index, "test_accuracy": accuracies[-1], "train_loss": losses[-1], **times})
        if not last:
            late = task.deadline.passed()
            if late or file.due:
                times = {"seconds": seconds, "waiting_seconds": waiting}
                file.write({**epoch.state(), **kept, "accuracies": accuracies, "losses": losses, **times})
            if late:
                raise TimeIsUp
        begun = time.monotonic()
    curves = {"accuracy_per_epoch": accuracies, "loss_per_epoch": losses, "seconds": seconds, "waiting_seconds": waiting}
    trial_records.write(folder, task.trial.name, {**_outcome(task, epoch), **curves, "peak_accuracy": max(accuracies)})
    file.remove()


def epochs_of(task: VictimTask, state: State) -> Iterator[tuple[Epoch, State, bool]]:
    """Open the training of a victim, with a test after each epoch, and before it a first stage without tests, where the plan has one.

    Clean and protected victims of one seed start from the same weights and see their images in the same order.

    Args:
        task: of the victim.
        state: of an earlier start; empty without one.

    Yields:
        An epoch, what a state of the training has besides the epoch's own, and whether the epoch is the last of all.
    """
    trial, plan, side, classes = task.trial, task.plan, task.input_size, len(task.pack.counts["classes"])
    device = torch.device("cuda" if task.gpu else "cpu")
    share_memory(device, task.config.trials_per_gpu)
    seed = derive(task.run_seed, "victim", trial.network, trial.seed)
    torch.manual_seed(seed)
    initial = task.config.pretrained if plan.initial else None
    network = new_network(trial.network, initial, task.pack, side).to(device).to(memory_format=torch.channels_last)
    for part in plan.parts:
        if part.prepared:
            part.prepared(network)
    images, config, kept = VictimImages(task, seed, device, network), plan.training(task.config), {}
    if plan.first:
        first = plan.first(network, task.config)
        if FIRST in state:
            first.network.load_state_dict(state[FIRST])
        else:
            opened, draws = images.batches(first.config), partial(generator, seed, "first")
            stage = fit(first.network, first.config, opened.epoch, opened.steps, draws, state=state or None, change=first.change)
            yield from ((epoch, {}, False) for epoch in stage)
            state = {}
        kept = {FIRST: first.network.state_dict()}
    shards, each = task.pack.shards["test"], image_bytes(task.pack.counts)
    tests: Tests = open_tests(task.run.child("pack"), shards, each, task.memory_limit_mb, device, loading(task))
    if plan.frozen:
        network, batches, tests = _probing(network, images, tests, config, classes)
    else:
        batches = images.batches(config)
    training = fit(
        network,
        replace(config, augmentation="none") if side else config,  # their windows are augmentation
        batches.epoch,
        batches.steps,
        draws=partial(generator, seed, "augment"),
        state=state or None,
        tests=tests,
        num_classes=classes,
        change=plan.change(classes),
        remedy="lower --victim.lr",
    )
    yield from ((epoch, kept, epoch.index + 1 == config.epochs) for epoch in training)


def _probing(network: Network, images: VictimImages, tests: Tests, config: TrainConfig, num_classes: int) -> tuple[Network, Batches, Tests]:
    """Return a linear head, and in the place of all images their features."""
    seen = images.batches(replace(config, batch_size=min(SEEN_TOGETHER, config.batch_size)))
    train = InMemory(*features_of(network, seen.epoch(0), config.precision), Split(config.batch_size, images.seed))
    assert isinstance(train.images, Tensor)
    tested = features_of(network, tests(), config.precision)
    return linear_probe(train.images, num_classes), train, partial(in_order, *tested, train.images.device)


def _outcome(task: VictimTask, last: Epoch) -> dict[str, Any]:
    """Return the trial and its figures after the last epoch. The caller adds the curves over all epochs."""
    assert last.table is not None
    table, protected = last.table, list(task.protected)
    others = sorted(set(range(len(table))) - set(protected))
    return {
        **asdict(task.trial),
        "stored": task.config.stored,
        "last_accuracy": accuracy(table, protected),
        "relabelled_accuracy": relabelled_accuracy(table[protected].numpy()),
        "other_accuracy": accuracy(table, others) if others else None,
        "accuracy_per_class": accuracy_per_class(table),
        "confusion": table.tolist(),
        "precision": last.precision,
        "resources": {"gpus": 1 / task.config.trials_per_gpu} if task.gpu else {"cpus": task.threads},
        "made_from": task.made_from,
    }
