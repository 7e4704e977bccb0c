"""One countermeasure: a change to an ordinary training, as an entry of the table in `sep.countermeasures.registry`.

Legend: B images, C channels, H W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sep.deferred import Deferred
from sep.train_config import TrainConfig

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from sep.at_rest import AtRest
    from sep.countermeasures.first_stage import FirstStage
    from sep.models import Network

Transform = Callable[["Tensor"], "Tensor"]
OfClass = Callable[["Tensor", "Tensor"], "Tensor"]
Epoch = Callable[[int], Iterable[tuple["Tensor", "Tensor"]]]

as_stored = Deferred("sep.countermeasures.preprocessing:as_stored")


@dataclass(frozen=True, kw_only=True)
class Countermeasure:
    """One change to an ordinary training; everything else stays as it is.

    Attributes:
        stored: applied to the stored images, once, `(B, 3, H, W)` uint8 to the same.
        fitted: maps the whole training set, `(epoch, K)`, to a function of images and their labels, like `stored`, except that its result
            need not be whole levels.
        searched: maps the whole training set and the network before its training, `(epoch, K, network)`, to a function like `stored`.
        prepared: changes the network itself, before its training.
        known_percent: share of the protected images that an adversary has in their clean form, for `fitted` alone, which reads them in the
            place of the training set, with their labels. No victim trains on them.
        known_pairs: the same for a number of images in both forms. `fitted` reads them as released, with their clean form in the place of
            labels.
        costly: whether `fitted` gives a change that takes too long to be made again in every epoch, so that the images must fit in memory.
        first: maps the network before its training and the settings of the victim to a training that comes first.
        mixed: applied to each training batch after augmentation: float levels `(B, C, H, W)`, class probabilities `(B, K)` and a
            generator to other levels and probabilities.
        distorted: like `mixed`, but classes stay as they are.
        hardened: like `distorted`, but against the network as it is at that step, which comes first.
        trained: applied to the settings of the training.
        initial: whether the network is one that was trained on other images before.
        frozen: whether only the linear head is trained, on features that are computed once and without augmentation.
        clean_percent: share of the protected images that an adversary has from elsewhere in their clean form.
        clean_only: whether an adversary trains on that share alone.
        knowledge: what it takes besides the release and any training code, in words; empty for nothing, or with `initial`.
        cost: of a training epoch, in ordinary ones, as measured on a CPU with ResNet-8 and 32-pixel images; what comes before the
            training is shared out among its epochs.
        revision: raise it whenever the meaning of the name changes, so that earlier victims are trained again.
    """

    stored: Transform | None = None
    fitted: Callable[[Epoch, int], OfClass] | None = None
    searched: Callable[[Epoch, int, Network], Transform] | None = None
    prepared: Callable[[Network], None] | None = None
    known_percent: int = 0
    known_pairs: int = 0
    costly: bool = False
    first: Callable[[Network, TrainConfig], FirstStage] | None = None
    mixed: Callable[[Tensor, Tensor, Generator], tuple[Tensor, Tensor]] | None = None
    distorted: Callable[[Tensor, Generator], Tensor] | None = None
    hardened: Callable[[AtRest, Tensor, Tensor, Generator], Tensor] | None = None
    trained: Callable[[TrainConfig], TrainConfig] | None = None
    initial: bool = False
    frozen: bool = False
    clean_percent: int = 0
    clean_only: bool = False
    knowledge: str = ""
    cost: float = 1.0
    revision: int = 0

    @property
    def clean_images(self) -> bool:
        """True if an adversary has images in their clean form, to train on or to learn a purification from."""
        return any((self.clean_percent, self.known_percent, self.known_pairs))

    @property
    def on_batches(self) -> bool:
        """True if it changes training batches."""
        return any((self.mixed, self.distorted, self.hardened))

    def on_stored(self, images: Tensor) -> Tensor:
        """Return images after the change; any fractions of levels are rounded before it."""
        assert self.stored is not None
        return self.stored(as_stored(images))

    def on_batch(self, network: AtRest, levels: Tensor, targets: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Return a training batch after the change."""
        if self.mixed:
            return self.mixed(levels, targets, generator)
        if self.distorted:
            return self.distorted(levels, generator), targets
        if self.hardened:
            return self.hardened(network, levels, targets, generator), targets
        return levels, targets
