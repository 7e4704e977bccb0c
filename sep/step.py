"""One step of a training: forward, backward and SGD; on a GPU recorded once as a CUDA graph and replayed.

Legend: B images, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from sep.at_rest import AtRest
from sep.choices import Precision
from sep.execution import autocast
from sep.recording import Recorder, plainly


class Step:
    """A step of SGD on the cross-entropy of a batch. It adds up the loss and the right answers, and waits for nothing.

    On a GPU the learning rate is a number in its memory, so that recorded and plain steps round it alike. The host starts a recorded step
    by one call instead of some 360: the kernels of a step take less time than their launches.

    Attributes:
        loss_sum: of the cross-entropy over the images since `restart`, each batch before its step.
        correct: number of right answers among them; of a mixed image, its heaviest class.
        at_rest: the network between two steps, for what changes batches.
    """

    def __init__(self, network: nn.Module, optimizer: Optimizer, precision: Precision, *, recorded: bool = False) -> None:
        """Prepare steps of one training, in a precision that is not auto; recorded where they can be: on a GPU, by one process alone."""
        self.network, self.optimizer, self.precision = network, optimizer, precision
        self.device = next(network.parameters()).device
        self.loss_sum, self.correct, self.rate = torch.zeros(3, device=self.device).unbind()
        recorded = recorded and self.device.type == "cuda" and not isinstance(network, DistributedDataParallel)
        self.run = Recorder() if recorded else plainly
        self.at_rest = AtRest(network, recorded=recorded)

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
        self.run(self._compute, levels, targets)
        group["lr"] = rate  # the schedule and saved states have numbers

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
