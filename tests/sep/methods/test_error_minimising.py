"""Error-minimising noise: it lowers the loss of a network that is trained on it, within the budget, the same for any number of threads."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sep.at_rest import AtRest
from sep.choices import Channels
from sep.countermeasures.contrastive import distorted
from sep.craft_config import CraftConfig
from sep.ensemble import freeze
from sep.fitting import Change, optimiser, train_epoch
from sep.methods.error_minimising import class_rows
from sep.methods.noise_training import NoiseConfig, Perturbed, minimise
from sep.methods.registry import METHODS, MOST_ROUNDS, Method
from sep.methods.request import Request, protect
from sep.models import Network, build
from sep.objective import shifted
from sep.pictures import one_size
from sep.train_config import TrainConfig
from sep.views.registry import VIEWS, Look, view

K, COUNT, SIDE, EPS = 4, 256, 8, 8
TRAIN = TrainConfig(epochs=6, batch_size=32, lr=0.05, augmentation="none")
CONFIG = NoiseConfig(training=TRAIN, eps_levels=EPS, steps=4)
PLAINLY = 4 * [(VIEWS["none"], Look())]


def images() -> tuple[Tensor, Tensor]:
    """Smooth images that have nothing to do with their labels, and can only be learned by heart."""
    corners = torch.rand(COUNT, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    smooth = functional.interpolate(corners, (SIDE, SIDE), mode="bilinear", align_corners=True)
    return (60 + 130 * smooth).to(torch.uint8), torch.arange(COUNT) % K


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return build("resnet8", K, SIDE, [127.0] * 3, [74.0] * 3)


class Noise(NamedTuple):
    levels: Tensor
    rounds: int
    error: float


def made(
    rows: Tensor, count: int, config: NoiseConfig = CONFIG, threads: int = 1, channels: Channels = "colour"
) -> tuple[Perturbed, Noise]:
    data = Perturbed(*images(), rows, count, channels)
    *earlier, last = minimise(network(), data, config, torch.Generator().manual_seed(1), threads)
    assert [(each.number, each.done) for each in (*earlier, last)] == [(n, n == last.number) for n in range(1, last.number + 1)]
    return data, Noise(data.levels, last.number, last.error)


@pytest.mark.parametrize("shared", [False, True], ids=["own", "class"])
def test_an_interrupted_training_goes_on_to_the_same_noise(shared: bool) -> None:
    rows, count = (images()[1], K) if shared else (torch.arange(COUNT), COUNT)
    config = replace(CONFIG, steps=1 if shared else 2, views=("none", "blur"), momentum=0.9, rounds=5, enough=None)
    config = replace(config, training=replace(TRAIN, batch_size=48, augmentation="crop-flip"))  # which does not divide the images
    whole = made(rows, count, config)[1]
    data = Perturbed(*images(), rows, count)
    for interrupted in minimise(network(), data, config, torch.Generator().manual_seed(1)):
        if interrupted.number == 3:
            break
    stream = io.BytesIO()
    torch.save(interrupted.state(), stream)
    stream.seek(0)
    again = Perturbed(*images(), rows, count)
    *_, last = minimise(network(seed=5), again, config, torch.Generator(), state=torch.load(stream, weights_only=True))
    assert (last.number, last.error) == (whole.rounds, whole.error)
    assert torch.equal(again.levels, whole.levels)
    assert not torch.equal(data.levels, whole.levels)


def trained_loss(levels: Tensor, change: Change | None = None) -> tuple[float, Network]:
    """The training loss that a fresh network reaches on some images, changed or not, in a few epochs, and that network."""
    labels, own = images()[1], network(seed=7)
    sgd, schedule = optimiser(own, replace(TRAIN, warmup_epochs=0), COUNT // 32)
    batches = list(zip(torch.split(levels, 32), torch.split(labels, 32), strict=True))
    generator = torch.Generator()
    for _ in range(TRAIN.epochs):
        loss = train_epoch(own, sgd, schedule, batches, "none", generator, change=change).loss
    return loss, own


def test_gradients_of_one_row_are_summed_in_any_order_of_the_images() -> None:
    gradients = torch.randn(40, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    places = torch.arange(40) % 3
    sums = Perturbed._sums(gradients, places, 3)
    assert torch.allclose(sums, torch.zeros(3, 3, 4, 4, dtype=torch.float64).index_add_(0, places, gradients.double()), atol=1e-12)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    own = Perturbed._sums(gradients, order, 40)
    assert torch.equal(own[order], gradients)


@pytest.mark.parametrize("shared", [False, True], ids=["own", "class"])
def test_noise_bound_to_a_wrong_class_lowers_its_loss_and_raises_that_of_the_true_class(shared: bool) -> None:
    clean, labels = images()
    wanted, everything = shifted(labels, K), torch.arange(COUNT)
    data = Perturbed(clean, labels, labels if shared else everything, K if shared else COUNT, wanted=wanted)
    frozen = freeze(trained_loss(clean)[1])

    def losses() -> tuple[float, float]:
        with torch.inference_mode():
            logits = frozen(data.released(everything).float())[1]
        return float(functional.cross_entropy(logits, labels)), float(functional.cross_entropy(logits, wanted))

    true, wrong = losses()
    data.descend(frozen, everything, CONFIG, PLAINLY)
    assert losses()[0] > true + 0.1
    assert losses()[1] < wrong - 0.1
    _, learned = next(data.batches(COUNT, torch.Generator().manual_seed(1)))
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))
    assert torch.equal(learned, labels[order])


@pytest.mark.parametrize("shared", [False, True], ids=["own", "class"])
def test_a_network_trained_on_the_noise_has_less_loss_than_on_clean_images(shared: bool) -> None:
    clean, labels = images()
    rows = labels if shared else torch.arange(COUNT)
    data, noise = made(rows, K if shared else COUNT, replace(CONFIG, steps=1 if shared else 4))
    assert noise.levels.shape == ((K if shared else COUNT), 3, SIDE, SIDE)
    assert 1 <= int(noise.levels.abs().max()) <= EPS
    seen = data.released(torch.arange(COUNT))
    assert torch.equal(seen, (clean.int() + noise.levels[rows]).clamp(0, 255).to(torch.uint8))
    on_noise, on_clean = trained_loss(seen)[0], trained_loss(clean)[0]
    assert on_noise < 0.7 * on_clean
    signs = EPS * (torch.randint(2, clean.shape, generator=torch.Generator().manual_seed(2)) * 2 - 1)
    at_random = (clean.int() + signs).clamp(0, 255).to(torch.uint8)
    assert on_noise < 0.7 * trained_loss(at_random)[0]  # it is not for being noise


def test_it_ends_when_hardly_an_image_is_wrong_and_says_so() -> None:
    _, noise = made(torch.arange(COUNT), COUNT)
    assert noise.rounds < MOST_ROUNDS
    assert noise.error <= 1


def test_it_ends_after_so_many_rounds_otherwise() -> None:
    _, noise = made(torch.arange(COUNT), COUNT, replace(CONFIG, eps_levels=1, steps=1, rounds=2))
    assert noise.rounds == 2
    assert noise.error > 1


def test_threads_and_micro_batches_change_no_noise() -> None:
    first = made(torch.arange(COUNT), COUNT)[1]
    assert torch.equal(made(torch.arange(COUNT), COUNT, threads=3)[1].levels, first.levels)


def test_each_descent_lowers_the_loss_of_that_network() -> None:
    clean, labels = images()
    frozen = freeze(trained_loss(clean)[1])
    data = Perturbed(clean, labels, torch.arange(COUNT), COUNT)
    losses = []
    for _ in range(3):
        losses.append(float(functional.cross_entropy(frozen(data.released(torch.arange(COUNT)).float())[1], labels)))
        data.descend(frozen, torch.arange(COUNT), CONFIG, PLAINLY)
    assert losses[0] > losses[1] > losses[2]


def test_images_without_noise_are_trained_on_as_they_are() -> None:
    clean, labels = images()
    rows = torch.where(labels == 1, -1, (labels != 1).cumsum(0) - 1)
    data, noise = made(rows, int((labels != 1).sum()))
    assert len(noise.levels) == int((labels != 1).sum())
    seen = data.released(torch.arange(COUNT))
    assert torch.equal(seen[labels == 1], clean[labels == 1])
    assert bool((seen[labels != 1] != clean[labels != 1]).flatten(1).any(1).all())
    assert not data.noise[-1].any()


def test_the_step_is_a_tenth_of_the_budget_in_whole_levels() -> None:
    clean, labels = images()
    frozen = freeze(network())
    for eps, step in ((2, 1), (8, 1), (16, 2), (40, 4)):
        data = Perturbed(clean, labels, torch.arange(COUNT), COUNT)
        data.descend(frozen, torch.arange(COUNT), replace(CONFIG, eps_levels=eps), PLAINLY[:1])
        assert set(torch.unique(data.noise[:-1].abs()).tolist()) <= {0, step}


def test_a_diverging_training_says_what_to_lower() -> None:
    with pytest.raises(ValueError, match=r"diverged in round \d+ .*surrogate\.lr"):
        made(torch.arange(COUNT), COUNT, replace(CONFIG, training=replace(TRAIN, lr=1e30)))


MIX = ("none", "jpeg-50", "gray", "noise-4", "simclr-60")


@pytest.mark.parametrize("shared", [False, True], ids=["own", "class"])
def test_noise_through_views_lowers_the_loss_in_each_of_them(shared: bool) -> None:
    clean, labels = images()
    config = replace(CONFIG, steps=1 if shared else 2, views=("none", "gray"), momentum=0.9, normalised=True, rounds=6, enough=None)
    data, noise = made(labels if shared else torch.arange(COUNT), K if shared else COUNT, config)
    assert (noise.rounds, int(noise.levels.abs().max())) == (6, EPS)
    released = data.released(torch.arange(COUNT))
    for name in ("none", "gray"):
        on_noise, on_clean = (trained_loss(view(name).on_stored(levels))[0] for levels in (released, clean))
        assert on_noise < 0.7 * on_clean, name


def test_noise_made_under_contrastive_augmentation_is_easier_to_learn_under_it() -> None:
    def augmented(_: AtRest, levels: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return distorted(levels, generator, strength=0.6), labels

    methods: tuple[Method, ...] = ("error-min", "aue")
    losses = {}
    for method in methods:
        data, _ = made(torch.arange(COUNT), COUNT, replace(CONFIG, views=METHODS[method].mix, rounds=10, enough=None))
        losses[method] = trained_loss(data.released(torch.arange(COUNT)), augmented)[0]
    assert losses["aue"] < 0.7 * losses["error-min"]


@pytest.mark.parametrize("shared", [False, True], ids=["own", "class"])
def test_threads_change_no_noise_through_views_either(shared: bool) -> None:
    rows, config = images()[1] if shared else torch.arange(COUNT), replace(CONFIG, steps=2, views=MIX, momentum=0.9, rounds=3, enough=None)
    first = made(rows, K if shared else COUNT, config)[1]
    assert torch.equal(made(rows, K if shared else COUNT, config, threads=3)[1].levels, first.levels)


def test_grey_noise_is_one_for_all_channels_and_follows_the_sum_of_their_gradients() -> None:
    clean, labels = images()
    data, noise = made(labels, K, replace(CONFIG, steps=1, rounds=3, enough=None), channels="grey")
    assert noise.levels.shape == (K, 1, SIDE, SIDE)
    change = data.released(torch.arange(COUNT)).int() - clean.int()
    assert torch.equal(change[:, 0], change[:, 1])
    assert torch.equal(change[:, 0], change[:, 2])
    frozen = freeze(network())
    grey = Perturbed(clean, labels, torch.arange(COUNT), COUNT, "grey")
    grey.descend(frozen, torch.arange(COUNT), CONFIG, PLAINLY[:1])
    levels = clean.float().requires_grad_()
    (slope,) = torch.autograd.grad(functional.cross_entropy(frozen(levels)[1], labels, reduction="sum"), levels)
    wanted = -slope.sum(1, keepdim=True).sign().to(torch.int16)
    assert float((grey.noise[:-1] == wanted).float().mean()) > 0.99


def test_momentum_is_kept_over_batches_and_only_where_a_row_was_seen() -> None:
    clean, labels = images()
    frozen, config = freeze(network()), replace(CONFIG, momentum=0.5)
    data = Perturbed(clean, labels, labels, K)
    data.velocity = torch.zeros(data.noise[:-1].shape)
    gradients = []
    for chosen in ((labels == 0).nonzero().flatten(), (labels <= 1).nonzero().flatten()):
        levels = data.released(chosen).float().requires_grad_()
        (slope,) = torch.autograd.grad(functional.cross_entropy(frozen(levels)[1], labels[chosen], reduction="sum"), levels)
        gradients.append(torch.stack([slope[labels[chosen] == k].sum(0) for k in range(K)]))
        data.descend(frozen, chosen, config, PLAINLY[:1])
    assert torch.allclose(data.velocity[0], 0.5 * gradients[0][0] + gradients[1][0], rtol=1e-3, atol=1e-5)
    assert torch.allclose(data.velocity[1], gradients[1][1], rtol=1e-3, atol=1e-5)
    assert not data.velocity[2:].any()
    assert not data.noise[2:].any()


def test_patterns_of_a_class_are_chosen_by_the_seeds_of_images() -> None:
    clean, labels = images()
    seeds = torch.randint(2**62, (COUNT,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = class_rows(labels, seeds, 4)
    assert torch.equal(rows // 4, labels)
    assert len(set(rows.tolist())) == 4 * K
    assert torch.equal(class_rows(labels, (), 1), labels)
    noise = made(rows, 4 * K, replace(CONFIG, steps=1, rounds=3, enough=None))[1].levels
    assert len({tuple(pattern.flatten().tolist()) for pattern in noise}) == 4 * K
    config = CraftConfig(method="error-min-class", patterns=4)
    request = Request(clean, labels, K, seeds, 0, config.budget(clean.shape[1:]), noise, config)
    assert torch.equal(one_size(protect(request)), (clean.int() + noise[rows]).clamp(0, 255).to(torch.uint8))
