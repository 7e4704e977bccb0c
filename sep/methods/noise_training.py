"""Training of error-minimising noise (Huang et al. 2021, "Unlearnable Examples: Making Personal Data Unexploitable") and of two variants.

`bait` binds the noise to a wrong class (Li et al. 2026, "When Priors Backfire: On the Vulnerability of Unlearnable Examples to
Pretraining", BAIT, arXiv 2603.04731). The network learns the true labels (the paper's inner level), and the noise descends on the loss of a
designated wrong class (its outer level). So the noise works against what a pretrained network sees in a picture, where noise for the true
class goes with it. The two levels are the paper's, as its abstract has them. Ours are the alternation with this loop's steps, and the
choice of the wrong class, SEP's. The training error does not show when such noise is done: `enough` is None there.

`aue` is the same noise under the augmentation of contrastive learning, as a view in both loops (Wang et al. 2024, "Efficient Availability
Attacks against Supervised and Contrastive Learning Simultaneously", AUE): noise that is learned through such augmentation lowers the loss
of contrastive learning too, the authors find. They take another path through the same two loops: 60 rounds of a whole epoch of training
each, at a falling rate, and 5 steps over the noise of an image, each with draws of its own. Here images share the draws of a step, a window
has at least 45 percent of the area where they have 46, and training images are augmented once more, as an adversary augments them.

Legend: B images, C channels, H W pixels, R rows of noise, one for each image or one or more for each class, c channels of the noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.optim import Optimizer

from sep.choices import Channels, Kernels, Precision
from sep.ensemble import freeze
from sep.execution import MicroBatch, arithmetic, to_device
from sep.fitting import State, optimiser, resume_training, train_epoch, training_state
from sep.methods.registry import ENOUGH, MOST_ROUNDS
from sep.methods.self_ensemble import normalise
from sep.models import Network
from sep.objective import target_cross_entropy
from sep.train_config import TrainConfig
from sep.views.mix import Looks, each_its_own, looks, one_a_batch
from sep.views.registry import PLAIN

TRAIN_STEPS = 10  # M of the paper: steps of SGD between two passes over the noise
STEPS_OF_RADIUS = 10  # the paper's step is a tenth of the budget


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """Settings of the noise and of the training against it."""

    training: TrainConfig  # batch size, constant rate, momentum, weight decay, augmentation and precision
    eps_levels: int  # L-infinity budget, in grey levels
    steps: int  # T of the paper: steps over the noise of an image in each round; 1 for noise of a class, which every batch moves
    rounds: int = MOST_ROUNDS  # at most
    enough: float | None = ENOUGH  # training error in percent at which the noise is done before; None: exactly so many rounds
    momentum: float = 0.0  # share of the last step's direction that is added to the gradient, over batches and rounds
    normalised: bool = False  # whether each row's gradient is divided by its mean magnitude
    views: tuple[str, ...] = PLAIN  # the mix, in both loops
    precision: Precision = "auto"
    kernels: Kernels = "fused"


@dataclass(frozen=True)
class Round:
    """One round that has just ended.

    Attributes:
        number: from 1.
        error: percentage of the perturbed training images that the network got wrong before the noise moved.
        done: whether the noise is finished, and has not moved in this round.
        state: returns what `minimise` needs to go on after this round. It holds the tensors in use: save it before the next round.
    """

    number: int
    error: float
    done: bool
    state: Callable[[], State]


class Perturbed:
    """Training images and their noise."""

    def __init__(
        self, images: Tensor, labels: Tensor, rows: Tensor, count: int, channels: Channels = "colour", wanted: Tensor | None = None
    ) -> None:
        """Begin with zero noise.

        Args:
            images: `(B, C, H, W)` uint8.
            labels: `(B,)`.
            rows: row of noise of each image, `(B,)`; -1 for an image without noise.
            count: R.
            channels: grey: one of the noise for all channels of the image.
            wanted: class that the noise of each image is bound to, `(B,)`; its own if not given.
        """
        self.images, self.labels, self.rows = images, labels, rows
        self.wanted = labels if wanted is None else wanted
        self.with_noise = (rows >= 0).nonzero().flatten()
        # The additional last row stays zero: it is row -1, that of images without noise.
        own = (1 if channels == "grey" else images.shape[1], *images.shape[2:])
        self.noise = torch.zeros(count + 1, *own, dtype=torch.int16, device=images.device)
        self.velocity: Tensor | None = None  # of the noise, where its steps have momentum
        self.order = torch.empty(0, dtype=torch.int64)  # of the images that are left of a pass in training batches

    @property
    def levels(self) -> Tensor:
        """The noise, `(R, c, H, W)` int16, on the CPU."""
        return self.noise[:-1].cpu()

    def released(self, chosen: Tensor) -> Tensor:
        """Return some images as they would be released, `(b, C, H, W)` uint8."""
        return (self.images[chosen] + self.noise[self.rows[chosen]]).clamp_(0, 255).to(torch.uint8)

    def batches(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield training batches without end, of images as they would be released at the time of the batch."""
        size = min(size, len(self.labels))
        while True:
            if len(self.order) < size:
                self.order = torch.randperm(len(self.labels), generator=generator).to(self.images.device)
            chosen, self.order = self.order[:size], self.order[size:]
            yield self.released(chosen), self.labels[chosen]

    def descend(self, network: Network, chosen: Tensor, config: NoiseConfig, dealt: Looks) -> None:
        """Move the noise of some images down the loss of the classes it is bound to by signed steps of whole levels, within the budget.

        Images that share a row of noise move it together, by the sign of the sum of their gradients, or of its momentum. There is a step
        for each look. A row that no image has keeps its momentum.
        """
        rows, wanted = self.rows[chosen], self.wanted[chosen]
        step = max(1, round(config.eps_levels / STEPS_OF_RADIUS))
        own, places = torch.unique(rows, return_inverse=True)
        noise, velocity = self.noise[own], None if self.velocity is None else self.velocity[own]
        for view, look in dealt:
            shown = (self.images[chosen] + noise[places]).clamp_(0, 255).to(torch.uint8)
            with torch.enable_grad():
                x = to_device(shown, network.mean, config.kernels).requires_grad_()
                (grad,) = torch.autograd.grad(target_cross_entropy(network(view.on_levels(x, look))[1], wanted), x)
            total = self._sums(grad if noise.shape[1] == grad.shape[1] else grad.sum(1, keepdim=True), places, len(own))
            total = normalise(total) if config.normalised else total
            if velocity is not None:
                velocity = total = velocity.mul_(config.momentum).add_(total)
            noise = (noise - step * total.sign().to(torch.int16)).clamp_(-config.eps_levels, config.eps_levels)
        self.noise[own] = noise
        if self.velocity is not None and velocity is not None:
            self.velocity[own] = velocity

    @staticmethod
    def _sums(gradients: Tensor, places: Tensor, count: int) -> Tensor:
        """Return the sum of gradients for each row, in double precision if rows are shared: `index_add_` on a GPU has no fixed order."""
        if count == len(places):
            return torch.empty_like(gradients).index_copy_(0, places, gradients)
        members = one_hot(places, count).double()
        return (members.T @ gradients.double().flatten(1)).view(count, *gradients.shape[1:])


def minimise(
    network: Network, data: Perturbed, config: NoiseConfig, generator: torch.Generator, threads: int = 1, state: State | None = None
) -> Iterator[Round]:
    """Train on the perturbed images and move the noise, in turns, until hardly an image is classified wrongly; yield after each round.

    Noise of single images descends by `steps` steps in each round, in micro-batches, from where the last round left it. Noise of a class
    descends by one step with every batch.

    Five things deviate from the paper. Changes are whole levels: its step of 0.8 levels at 8/255 is one level. The step of a class is the
    sign of the sum of gradients, where the paper's code averages the stepped noise. The rate is not lowered. Training images are
    augmented, as an adversary augments them. The error is taken before the noise moves once more, because noise that has just descended
    is classified rightly after hardly any training.

    With views, each training batch is seen in one view of the mix, and each step over the noise follows gradients through one. Momentum,
    normalised gradients, one noise for all channels and several noises a class are not in the paper either.

    Three numbers differ from the commands of the paper's code. Noise of single images takes 20 steps a round there, and here as many as
    any crafting method (`CraftConfig.steps`: 30 by default, 15 or fewer in the presets of small networks). Noise of a class is finished
    there at an error of 10 percent, and here at the error of single images. Rounds go on there until the error is reached.

    Args:
        network: freshly initialised or pretrained, on the device of the data; this function trains it.
        data: with zero noise; this function moves it.
        config: settings of the noise.
        generator: on the CPU; source of the order of the images and of the augmentation.
        threads: number of micro-batches at a time on a CPU, each computed by one thread; it does not change the noise. One thread trains.
        state: of an earlier start of the same noise, as `Round.state` returned it; it ends at the same noise on the same hardware.

    Raises:
        ValueError: training diverged.
    """
    shared = len(torch.unique(data.rows[data.with_noise])) < len(data.with_noise)
    if config.momentum:
        data.velocity = torch.zeros(data.noise[:-1].shape, device=data.noise.device)
    # A constant rate: the schedule lowers it after the first of two epochs, and training ends with the first.
    steady = replace(config.training, schedule="step", warmup_epochs=0, epochs=2)
    sgd, scheduler = optimiser(network, steady, config.rounds * TRAIN_STEPS + 1)
    first = 1 if state is None else _resume(network, sgd, data, generator, state) + 1
    scheduler.last_epoch = (first - 1) * TRAIN_STEPS
    batches = one_a_batch(data.batches(config.training.batch_size, generator), config.views, generator)
    deal = partial(looks, config.views, config.steps, config.eps_levels, generator)  # to the steps over the noise
    for number in range(first, config.rounds + 1):
        left = partial(_state, network, sgd, data, generator, number)
        some = islice(batches, TRAIN_STEPS)
        result = train_epoch(network, sgd, scheduler, some, config.training.augmentation, generator, config.training.precision)
        if not result.finite:
            raise ValueError(f"training against the noise diverged in round {number} (loss {result.loss}): lower --surrogate.lr")
        frozen = freeze(network, config.kernels)
        with arithmetic(data.images.device, config.precision):
            error = _error(data, frozen, config, generator)
            # Not in the first round, without noise: a small training set is memorised at once.
            if (config.enough is not None and error <= config.enough and number > 1) or number == config.rounds:
                yield Round(number, error, True, left)
                return
            if shared:
                _descend_together(data, frozen, config, deal, generator)
            else:
                _descend_apart(data, frozen, config, deal(), threads)
        yield Round(number, error, False, left)


def _state(network: Network, sgd: Optimizer, data: Perturbed, generator: torch.Generator, rounds: int) -> State:
    trained = training_state(network, sgd, rounds, data.images.device)
    return {**trained, "draws": generator.get_state(), "noise": data.noise, "velocity": data.velocity, "order": data.order}


def _resume(network: Network, sgd: Optimizer, data: Perturbed, generator: torch.Generator, state: State) -> int:
    """Set everything as it was, and return the number of rounds that were done."""
    generator.set_state(state["draws"])
    data.noise, data.order = (state[name].to(data.images.device) for name in ("noise", "order"))
    data.velocity = None if state["velocity"] is None else state["velocity"].to(data.images.device)
    return resume_training(network, sgd, data.images.device, state)


def _descend_together(
    data: Perturbed, network: Network, config: NoiseConfig, deal: Callable[[], Looks], generator: torch.Generator
) -> None:
    """Move the noise of classes by a step with each batch."""
    order = data.with_noise[torch.randperm(len(data.with_noise), generator=generator).to(data.rows.device)]
    for chosen in torch.split(order, config.training.batch_size):
        data.descend(network, chosen, config, deal())


def _descend_apart(data: Perturbed, network: Network, config: NoiseConfig, dealt: Looks, threads: int) -> None:
    """Move the noise of single images, which do not depend on each other."""
    device, count = data.images.device, len(data.with_noise)
    batch = MicroBatch.fitting(data.images.shape[1:], device)

    def part(of: slice) -> None:
        with arithmetic(device, config.precision):  # again, because autocast holds for one thread
            data.descend(network, data.with_noise[of], config, dealt)

    if device.type == "cuda":
        list(batch.run(part, count))
        return
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        list(pool.map(part, [slice(start, start + batch.size) for start in range(0, count, batch.size)]))


@torch.inference_mode()
def _error(data: Perturbed, network: Network, config: NoiseConfig, generator: torch.Generator) -> float:
    """Return the percentage of the images with noise, each in a view of the mix, that are classified wrongly."""
    wrong = 0
    for chosen in torch.split(data.with_noise, 500):
        seen = each_its_own(data.released(chosen), config.views, generator)
        predicted = network(to_device(seen, network.mean, config.kernels))[1].argmax(1)
        wrong += int((predicted != data.labels[chosen]).sum())
    return 100 * wrong / len(data.with_noise)
