"""The network of a training at rest, for a search of images that are hard for it.

Legend: B images, C channels, H W pixels, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sep.ensemble import freeze
from sep.models import Network
from sep.recording import Recorder, plainly


class AtRest:
    """A network in eval mode within a block, as it is at that step of its training.

    A search then neither moves batch-norm statistics nor depends on the batch. On a CPU the block has a copy with batch-norm folded into
    its convolutions. Folding costs a quarter of a gradient and makes gradients 1.3 times as fast; on a GPU it costs more than it saves.
    """

    def __init__(self, network: nn.Module, *, recorded: bool = False) -> None:
        """Prepare searches; recorded ones need the network to stay on its GPU."""
        self.network, self._used, self._training = network, network, network.training
        self._of_losses, self._of_slopes = (Recorder() if recorded else plainly for _ in range(2))

    def __enter__(self) -> AtRest:
        """Lay the network to rest."""
        self._training = self.network.training
        if isinstance(self.network, Network) and not self.network.mean.is_cuda:
            self._used = freeze(self.network)
        else:
            self.network.eval()
        return self

    def __exit__(self, *_: object) -> None:
        """Go on with the training."""
        self._used = self.network.train(self._training)

    @torch.no_grad()
    def losses(self, levels: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of each image: levels `(B, C, H, W)` and probabilities of the classes `(B, K)` to `(B,)`."""
        found: Tensor = self._of_losses(self._losses, levels, targets)
        return found

    def slopes(self, levels: Tensor, targets: Tensor) -> Tensor:
        """Return the gradient of each image's cross-entropy with respect to its levels, `(B, C, H, W)`."""
        found: Tensor = self._of_slopes(self._slopes, levels, targets)
        return found

    def _losses(self, levels: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(self._used(levels)[1], targets, reduction="none")

    def _slopes(self, levels: Tensor, targets: Tensor) -> Tensor:
        levels = levels.detach().requires_grad_()
        (slopes,) = torch.autograd.grad(self._losses(levels, targets).sum(), levels)
        return slopes
