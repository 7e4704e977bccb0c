"""Training and evaluating one network, over any iterable of batches.

Legend: B images, C channels, H W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from sep.augment import augment
from sep.train_config import Augmentation
from sep.train_config import TrainConfig as TrainConfig

Batches = Iterable[tuple[Tensor, Tensor]]
# Of a training batch, for the network as it is: levels and labels `(B,)` to other levels and class probabilities `(B, K)`.
Change = Callable[[nn.Module, Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]
WARMUP_START = 0.01  # of the full rate: 0.001 -> 0.1 in the paper's warm-up epoch


@dataclass(frozen=True)
class EpochResult:
    """Means over the images of one training epoch: cross-entropy, and accuracy in percent on the batches as they were trained on.

    Where an image is of several classes, the right answer is its heaviest. Training that diverged shows in `finite`: of the last step
    the loss tells nothing, because it was taken before that step.
    """

    loss: float
    accuracy: float
    finite: bool  # the loss, and every weight and running statistic as the epoch leaves them


def optimiser(network: nn.Module, config: TrainConfig, steps_per_epoch: int) -> tuple[Optimizer, LRScheduler]:
    """SGD and its schedule, which moves once per step; its `last_epoch` counts steps, and setting it resumes it."""
    # One pass over all weights at once: small networks spend as long in a loop over tensors as in a convolution. On a GPU in one kernel.
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
    autocast: torch.dtype | None = None,
    change: Change | None = None,
) -> EpochResult:
    """One pass of SGD on the cross-entropy of the true labels, or of what a change makes of them.

    Only its end waits for the device, so that on a GPU the host stays ahead.

    Args:
        network: gives (features, logits); on the device it is to be trained on.
        optimizer: over the network's weights.
        scheduler: stepped once per batch.
        batches: images `(B, C, H, W)` in levels, any dtype, and labels `(B,)`.
        augmentation: applied to each batch on the device.
        generator: on the CPU; source of the augmentation's draws.
        autocast: type that products and convolutions round to, weights and their sums staying float32; nothing is rounded if not given.
        change: made of each augmented batch, drawing from the same generator.
    """
    network.train()
    device = next(network.parameters()).device
    loss_sum, correct, seen = torch.zeros((), device=device), torch.zeros((), device=device), 0
    for images, labels in batches:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        levels = augment(images, augmentation, generator).to(torch.float32, memory_format=torch.channels_last)
        targets = labels
        if change is not None:
            levels, targets = change(network, levels, labels, generator)
            levels, labels = levels.contiguous(memory_format=torch.channels_last), targets.argmax(1)
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            logits = network(levels)[1]
            loss = functional.cross_entropy(logits, targets)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        scheduler.step()
        loss_sum += loss.detach() * len(labels)
        correct += (logits.argmax(1) == labels).sum()
        seen += len(labels)
    left = torch.stack([tensor.isfinite().all() for tensor in (loss_sum, *network.parameters(), *network.buffers())])
    return EpochResult(float(loss_sum) / seen, 100 * float(correct) / seen, bool(left.all()))


@torch.inference_mode()
def confusion(network: nn.Module, batches: Batches, num_classes: int, autocast: torch.dtype | None = None) -> Tensor:
    """How often each true class is given each predicted class: `(K, K)` int64 on the CPU, rows are the truth.

    With `autocast` products and convolutions round to that type, and an image whose two best classes round alike may go to either.
    """
    network.eval()
    device = next(network.parameters()).device
    table = torch.zeros(num_classes**2, dtype=torch.int64, device=device)
    for images, labels in batches:
        levels = images.to(device, torch.float32, memory_format=torch.channels_last)
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            predicted = network(levels)[1].argmax(1)
        table += torch.bincount(labels.to(device) * num_classes + predicted, minlength=num_classes**2)
    return table.view(num_classes, num_classes).cpu()


def accuracy(table: Tensor, classes: Sequence[int] | None = None) -> float:
    """Percent correct of a confusion table `(K, K)`, on the images of some classes if they are given."""
    rows = list(range(len(table))) if classes is None else list(classes)
    return 100 * float(table.diagonal()[rows].sum()) / float(table[rows].sum())
