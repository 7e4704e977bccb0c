"""Train and test one network over any iterable of batches: the one training loop, for surrogates and victims.

Legend: B images, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from sep.at_rest import AtRest
from sep.augment import augment
from sep.choices import Precision
from sep.execution import autocast, backends, moved, resolve
from sep.step import Step
from sep.train_config import Augmentation, TrainConfig

Batches = Iterable[tuple[Tensor, Tensor]]
# Maps the network at rest, levels and labels `(B,)` of a batch to other levels, and their labels or class probabilities `(B, K)`.
Change = Callable[[AtRest, Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]
State = dict[str, Any]
WARMUP_START = 0.01  # of the full rate: 0.001 -> 0.1 in the paper's warm-up epoch


@dataclass(frozen=True)
class EpochResult:
    """Means over the images of one training epoch.

    Attributes:
        loss: cross-entropy, each batch before its step.
        accuracy: percent, on the batches as they were trained on; the right answer of a mixed image is its heaviest class.
        finite: whether the loss and all weights and running statistics are finite after the last step, which the loss does not show.
    """

    loss: float
    accuracy: float
    finite: bool


@dataclass(frozen=True)
class Epoch:
    """One epoch of a training that has just ended.

    Attributes:
        index: its number, from 0.
        result: means over its images.
        table: confusion counts `(K, K)` of the test images after it; None in a training without tests.
        lr: learning rate of the next step.
        seconds: the time of training and testing.
        waiting_seconds: the time for which training and testing waited for their batches. On a GPU, which runs behind the host, it is
            counted only where they come too slowly for the GPU as well.
        precision: the arithmetic in use, never auto.
        state: returns what `fit` needs to go on after this epoch. It holds the tensors in use: save it before the next epoch.
    """

    index: int
    result: EpochResult
    table: Tensor | None
    lr: float
    seconds: float
    waiting_seconds: float
    precision: Precision
    state: Callable[[], State]


def fit(
    network: nn.Module,
    config: TrainConfig,
    batches: Callable[[int], Batches],
    steps_per_epoch: int,
    draws: Callable[[int], torch.Generator],
    *,
    state: State | None = None,
    tests: Callable[[], Batches] | None = None,
    num_classes: int = 0,
    change: Change | None = None,
    average: Callable[[EpochResult], EpochResult] | None = None,
    remedy: str = "lower the learning rate",
) -> Iterator[Epoch]:
    """Train a network, and yield after each epoch; a caller that stops here can go on from the last epoch's state.

    A resumed training ends at the same weights as one in a single piece, for the same batches and draws on the same hardware.

    Args:
        network: gives (features, logits), on the device to train on; may be wrapped for data-parallel training.
        config: of the training.
        batches: opens the batches of an epoch (from 0), see `train_epoch`; called at the epoch's beginning, so it may seed torch.
        steps_per_epoch: batches in each epoch.
        draws: gives the generator of an epoch's augmentation, on the CPU.
        state: of an earlier start of the same training, as `Epoch.state` returned it.
        tests: opens the test batches, for a test after every epoch.
        num_classes: K, for tests.
        change: made to each training batch after augmentation.
        average: maps this rank's result to the mean over all ranks of a data-parallel training.
        remedy: what to do about divergence, for the error.

    Raises:
        ValueError: the training diverged.
    """
    sgd, scheduler = optimiser(network, config, steps_per_epoch)
    own = network.module if isinstance(network, DistributedDataParallel) else network
    device = next(network.parameters()).device
    precision = resolve(config.precision, device)
    step, first = Step(network, sgd, precision, recorded=config.recorded), 0
    if state is not None:
        first = resume_training(own, sgd, device, state)
        scheduler.last_epoch = first * steps_per_epoch  # computed, because the number of steps depends on the number of ranks
    for index in range(first, config.epochs):
        begun = time.monotonic()
        timed = _Timed(batches(index))
        result = train_epoch(network, sgd, scheduler, timed, config.augmentation, draws(index), precision, change, step)
        result = average(result) if average else result
        if not result.finite:
            raise ValueError(f"training diverged in epoch {index + 1} (loss {result.loss}): {remedy}")
        tested = _Timed(tests() if tests else ())
        table = confusion(network, tested, num_classes, precision) if tests else None
        rate, seconds, waiting = sgd.param_groups[0]["lr"], time.monotonic() - begun, timed.seconds + tested.seconds
        yield Epoch(index, result, table, rate, seconds, waiting, precision, partial(training_state, own, sgd, index + 1, device))


class _Timed:
    """Batches, and the seconds for which they were waited for."""

    def __init__(self, batches: Batches) -> None:
        self.batches, self.seconds = iter(batches), 0.0

    def __iter__(self) -> _Timed:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        begun = time.monotonic()
        try:
            return next(self.batches)
        finally:
            self.seconds += time.monotonic() - begun


def training_state(network: nn.Module, sgd: Optimizer, epochs: int, device: torch.device) -> State:
    """Return what a training needs to go on after so many epochs. It holds the tensors in use."""
    random = {"cpu": torch.get_rng_state()} | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})
    return {"network": network.state_dict(), "optimizer": sgd.state_dict(), "random": random, "epochs": epochs}


def resume_training(network: nn.Module, sgd: Optimizer, device: torch.device, state: State) -> int:
    """Set a network, its optimiser and torch's own random numbers, which dropout draws from, as they were; return the epochs done."""
    network.load_state_dict(state["network"])
    sgd.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"]["cpu"])
    if device.type == "cuda" and "cuda" in state["random"]:
        torch.cuda.set_rng_state(state["random"]["cuda"], device)
    return int(state["epochs"])


def optimiser(network: nn.Module, config: TrainConfig, steps_per_epoch: int) -> tuple[Optimizer, LRScheduler]:
    """Return SGD and its schedule, which moves once per step; its `last_epoch` counts steps, and setting it resumes it."""
    # One pass over all weights, on a GPU one kernel: a loop over the tensors of a small network takes as long as a convolution.
    on_gpu = next(network.parameters()).is_cuda
    sgd = SGD(network.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay, foreach=not on_gpu, fused=on_gpu)
    if config.schedule == "one-cycle":
        return sgd, OneCycleLR(sgd, config.lr, total_steps=config.epochs * steps_per_epoch, cycle_momentum=False)

    def factor(step: int) -> float:
        warmup = config.warmup_epochs * steps_per_epoch
        if step < warmup:
            return WARMUP_START + (1 - WARMUP_START) * step / warmup
        epoch = step // steps_per_epoch
        return float(0.1 ** sum(epoch >= int(share * config.epochs) for share in (0.625, 0.75)))

    return sgd, LambdaLR(sgd, factor)


def train_epoch(
    network: nn.Module,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    batches: Batches,
    augmentation: Augmentation,
    generator: torch.Generator,
    precision: Precision = "auto",
    change: Change | None = None,
    step: Step | None = None,
) -> EpochResult:
    """Make one pass of SGD on the cross-entropy of the true labels, or of the classes that `change` gives.

    Only its end waits for the device, so that on a GPU the host stays ahead. Weights, their sums and the images keep float32 whatever
    the precision; `change` works on images, and computes without autocast.

    Args:
        network: gives (features, logits); on the device to train on.
        optimizer: over the network's weights.
        scheduler: stepped once per batch.
        batches: images `(B, C, H, W)` in levels, any dtype, and labels `(B,)`.
        augmentation: applied to each batch on the device.
        generator: on the CPU; source of the augmentation's draws.
        precision: of products and convolutions.
        change: made to each augmented batch, drawing from the same generator.
        step: of the earlier epochs, if it is recorded; plain steps if not given.
    """
    network.train()
    device = next(network.parameters()).device
    precision = resolve(precision, device)
    step, seen = step or Step(network, optimizer, precision), 0
    step.restart()
    with backends(precision):
        for images, labels in batches:
            images, targets = moved(images, device), moved(labels, device)
            levels = augment(images, augmentation, generator).to(torch.float32, memory_format=torch.channels_last)
            if change is not None:
                levels, targets = change(step.at_rest, levels, targets, generator)
                levels = levels.contiguous(memory_format=torch.channels_last)
            step(levels, targets)
            scheduler.step()
            seen += len(targets)
    left = torch.stack([tensor.isfinite().all() for tensor in (step.loss_sum, *network.parameters(), *network.buffers())])
    return EpochResult(float(step.loss_sum) / seen, 100 * float(step.correct) / seen, bool(left.all()))


@torch.inference_mode()
def confusion(network: nn.Module, batches: Batches, num_classes: int, precision: Precision = "auto") -> Tensor:
    """Count the predictions of each class for each true class: `(K, K)` int64 on the CPU, a row for each true class.

    In bf16 the two best classes of an image may round to the same value; then it may be counted for either.
    """
    network.eval()
    device = next(network.parameters()).device
    precision = resolve(precision, device)
    table = torch.zeros(num_classes**2, dtype=torch.int64, device=device)
    with backends(precision), autocast(device, precision):
        for images, labels in batches:
            levels = moved(images, device).to(torch.float32, memory_format=torch.channels_last)
            cells = moved(labels, device) * num_classes + network(levels)[1].argmax(1)
            table.scatter_add_(0, cells, torch.ones_like(cells))  # `bincount` reads its largest value first
    return table.view(num_classes, num_classes).cpu()


def accuracy(table: Tensor, classes: Sequence[int] | None = None) -> float:
    """Return the percentage correct of a confusion table `(K, K)`, over the images of some classes if they are given."""
    rows = list(range(len(table))) if classes is None else list(classes)
    return 100 * float(table.diagonal()[rows].sum()) / float(table[rows].sum())
