"""One step of a training: forward, backward and SGD; on a GPU recorded once as a CUDA graph and replayed.

Legend: B images, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from sep.choices import Precision
from sep.execution import autocast

WARM_UP = 3  # plain steps before the recording, in which libraries set themselves up


class Step:
    """A step of SGD on the cross-entropy of a batch. It adds up the loss and the right answers, and waits for nothing.

    On a GPU the learning rate is a number in its memory, so that recorded and plain steps round it alike.

    Attributes:
        loss_sum: of the cross-entropy over the images since `restart`, each batch before its step.
        correct: number of right answers among them; of a mixed image, its heaviest class.
    """

    def __init__(self, network: nn.Module, optimizer: Optimizer, precision: Precision) -> None:
        """Prepare steps of one training, in a precision that is not auto."""
        self.network, self.optimizer, self.precision = network, optimizer, precision
        self.device = next(network.parameters()).device
        self.loss_sum, self.correct, self.rate = torch.zeros(3, device=self.device).unbind()

    def restart(self) -> None:
        """Count from zero again."""
        self.loss_sum.zero_()
        self.correct.zero_()

    def __call__(self, levels: Tensor, targets: Tensor) -> None:
        """Train on images `(B, C, H, W)` in float levels and labels `(B,)` or class probabilities `(B, K)`, on the device."""
        if self.device.type != "cuda":
            self._compute(levels, targets)
            return
        (group,) = self.optimizer.param_groups
        rate: float = group["lr"]
        self.rate.fill_(rate)
        group["lr"] = self.rate
        self._run(levels, targets)
        group["lr"] = rate  # the schedule and saved states have numbers

    def _run(self, levels: Tensor, targets: Tensor) -> None:
        self._compute(levels, targets)

    def _compute(self, levels: Tensor, targets: Tensor) -> None:
        labels = targets if targets.dim() == 1 else targets.argmax(1)
        with autocast(self.device, self.precision):
            logits = self.network(levels)[1]
            loss = functional.cross_entropy(logits, targets)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.loss_sum += loss.detach() * len(labels)
        self.correct += (logits.argmax(1) == labels).sum()


class RecordedStep(Step):
    """The same step, which the host starts by one call instead of some 360: its kernels take less time than their launches.

    A step is recorded after `WARM_UP` batches of one shape in a row, and computed plainly for every batch of another shape.
    """

    def __init__(self, network: nn.Module, optimizer: Optimizer, precision: Precision) -> None:
        """Record nothing yet."""
        super().__init__(network, optimizer, precision)
        self.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self.recorded: tuple[torch.cuda.CUDAGraph, Tensor, Tensor] | None = None  # the graph, and what it reads
        self.kind: tuple[Any, ...] = ()  # of the last batch, or of those that are recorded
        self.alike = 0  # batches of that kind in a row

    def _run(self, levels: Tensor, targets: Tensor) -> None:
        kind = *_kind(levels), *_kind(targets)
        if self.recorded is None:
            self.kind, self.alike = kind, self.alike * (kind == self.kind) + 1
            if self.alike > WARM_UP:
                self.recorded = self._record(levels.clone(), targets.clone())
        if self.recorded is not None and kind == self.kind:
            graph, own_levels, own_targets = self.recorded
            own_levels.copy_(levels)
            own_targets.copy_(targets)
            graph.replay()
            return
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):  # as the recording does, so that libraries are set up for it
            self._compute(levels, targets)
        current.wait_stream(self.stream)

    def _record(self, levels: Tensor, targets: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        """Record a step without computing it. Garbage of earlier trainings waits: a graph that is freed meanwhile ends a recording."""
        graph = torch.cuda.CUDAGraph()
        gc.collect()
        gc.disable()
        try:
            # Another thread may ask for pinned memory meanwhile, for the batches to come: that is none of this recording.
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self._compute(levels, targets)
        finally:
            gc.enable()
        return graph, levels, targets


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.stride()


def open_step(network: nn.Module, optimizer: Optimizer, precision: Precision, *, recorded: bool) -> Step:
    """Return steps that are recorded where they can be: on a GPU, by one process that trains alone."""
    alone = next(network.parameters()).is_cuda and not isinstance(network, DistributedDataParallel)
    return (RecordedStep if recorded and alone else Step)(network, optimizer, precision)
