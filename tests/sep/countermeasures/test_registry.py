"""The table of countermeasures: their effects on stored levels, on the settings and the cost of a training, and their combinations."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sep.at_rest import AtRest
from sep.countermeasures import preprocessing
from sep.countermeasures.registry import COUNTERMEASURES, plan
from sep.fitting import optimiser, train_epoch
from sep.models import build
from sep.train_config import TrainConfig
from sep.views.registry import VIEWS, view

ROOT = Path(__file__).parents[3]
STORED = [name for name, countermeasure in COUNTERMEASURES.items() if countermeasure.stored]


@pytest.fixture
def images() -> Tensor:
    """A smooth colour ramp under fine noise."""
    ramp = torch.linspace(40, 200, 32)
    smooth = torch.stack([ramp.view(1, -1).expand(32, 32), ramp.view(-1, 1).expand(32, 32), ramp.flip(0).view(1, -1).expand(32, 32)])
    noise = torch.randint(-30, 31, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    return (smooth + noise).round().to(torch.uint8)


def apply(name: str, images: Tensor) -> Tensor:
    """Return stored images after a countermeasure."""
    for part in plan(name).on_images:
        images = part.on_stored(images)
    return images


def luma(images: Tensor) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    return (images.double() * weights.view(1, 3, 1, 1)).sum(1)


def high_frequencies(images: Tensor) -> float:
    """Return the energy in the outer half of the luma's spectrum."""
    spectrum = torch.fft.fft2(luma(images)).abs().square()
    return float(spectrum[:, 8:25, 8:25].sum())


def test_grayscale_is_luma_in_all_channels(images: Tensor) -> None:
    gray = apply("grayscale", images)
    assert torch.equal(gray[:, 0], gray[:, 1])
    assert torch.equal(gray[:, 0], gray[:, 2])
    assert float((gray[:, 0] - luma(images)).abs().max()) < 1.1  # torchvision truncates the fraction


@pytest.mark.parametrize("quality", [10, 50, 90])
def test_jpeg_is_a_real_codec_at_the_quality_named(images: Tensor, quality: int) -> None:
    """Two codecs of the same standard may differ by rounding, and by no more than that."""
    ours = apply(f"jpeg-{quality}", images)
    for image, after in zip(images, ours, strict=True):
        stream = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(stream, "jpeg", quality=quality)
        theirs = np.asarray(Image.open(stream)).astype(int)
        assert np.abs(after.permute(1, 2, 0).numpy().astype(int) - theirs).mean() < 1


def test_jpeg_takes_more_fine_detail_the_lower_its_quality(images: Tensor) -> None:
    left = [high_frequencies(apply(f"jpeg-{quality}", images)) / high_frequencies(images) for quality in (10, 50, 90)]
    assert left[0] < 0.1
    assert left[0] < left[1] < left[2]


def test_two_bits_are_four_levels_and_the_nearest_of_them(images: Tensor) -> None:
    after = apply("bit-depth-2", torch.arange(256, dtype=torch.uint8).expand(1, 3, 2, 256))
    assert sorted(set(after.flatten().tolist())) == [0, 85, 170, 255]
    assert int((after.int() - torch.arange(256)).abs().max()) == 42
    assert abs(float(apply("bit-depth-2", images).float().mean() - images.float().mean())) < 2  # no darker, no brighter


def test_blur_is_a_gaussian_of_one_pixel() -> None:
    point = torch.zeros(1, 3, 9, 9, dtype=torch.uint8)
    point[:, :, 4, 4] = 255
    spread = apply("gaussian-blur", point)[0, 0].double() / 255
    side = np.exp(-0.5) / (1 + 2 * np.exp(-0.5))
    centre = 1 / (1 + 2 * np.exp(-0.5))
    expected = torch.zeros(9, 9, dtype=torch.float64)
    expected[3:6, 3:6] = torch.outer(torch.tensor([side, centre, side]), torch.tensor([side, centre, side]))
    assert torch.allclose(spread, expected, atol=1 / 255)


@pytest.mark.parametrize(("name", "function", "number"), [("jpeg", "jpeg", 33), ("webp", "webp", 75), ("resize", "resize", 60)])
def test_a_view_and_a_countermeasure_are_one_code(images: Tensor, name: str, function: str, number: int) -> None:
    after = getattr(preprocessing, function)(images, number)
    assert torch.equal(apply(f"{name}-{number}", images), after)
    if name in VIEWS:
        assert torch.equal(view(f"{name}-{number}").on_stored(images), after)


def test_webp_is_a_real_codec(images: Tensor) -> None:
    for image, after in zip(images, apply("webp-75", images), strict=True):
        stream = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(stream, "webp", quality=75)
        theirs = np.asarray(Image.open(stream)).astype(int)
        assert np.abs(after.permute(1, 2, 0).numpy().astype(int) - theirs).max() <= 1


def test_a_resize_takes_fine_detail_and_keeps_the_size(images: Tensor) -> None:
    left = [high_frequencies(apply(f"resize-{percent}", images)) / high_frequencies(images) for percent in (25, 50, 75)]
    assert left[0] < left[1] < left[2] < 1
    assert left[1] < 0.2
    shown = high_frequencies(apply("screenshot", images)) / high_frequencies(images)
    assert shown < left[2]
    odd = images[..., :29, :21]
    assert apply("resize-50+screenshot", odd).shape == odd.shape


@pytest.mark.parametrize("name", STORED)
def test_stored_levels_stay_stored_levels_and_the_input_stays(images: Tensor, name: str) -> None:
    before = images.clone()
    after = apply(name, images)
    assert after.dtype == torch.uint8
    assert after.shape == images.shape
    assert torch.equal(images, before)
    assert torch.equal(after, apply(name, images))


def test_several_are_done_in_the_order_given(images: Tensor) -> None:
    assert torch.equal(apply("grayscale+jpeg-10", images), apply("jpeg-10", apply("grayscale", images)))
    assert torch.equal(apply("jpeg-10+grayscale", images), apply("grayscale", apply("jpeg-10", images)))
    assert not torch.equal(apply("grayscale+jpeg-10", images), apply("jpeg-10+grayscale", images))
    both = plan("cutmix+cutout").change(3)
    assert both is not None
    grey = torch.full((3, 3, 8, 8), 10.0)
    levels, targets = both(AtRest(torch.nn.Identity()), grey, torch.arange(3), torch.Generator().manual_seed(1))
    assert 127.5 in levels.flatten().tolist()
    assert torch.allclose(targets.sum(1), torch.ones(3))


def test_none_is_an_ordinary_training() -> None:
    nothing = plan("none")
    assert nothing.on_images == []
    assert nothing.change(10) is None
    assert nothing.training(TrainConfig()) == TrainConfig()
    assert (nothing.cost, nothing.clean_percent) == (1, 0)


@dataclass(frozen=True, kw_only=True)
class OwnConfig(TrainConfig):
    """Settings with more than a training needs, as those of a pipeline have."""

    seeds: int = 3


def test_settings_of_the_training() -> None:
    config = OwnConfig(epochs=30, warmup_epochs=1, augmentation="crop-flip", seeds=5)
    plain = plan("no-augmentation").training(config)
    assert (plain.augmentation, plain.epochs) == ("none", 30)
    short = plan("early-stop").training(config)
    assert (short.epochs, short.augmentation, short) == (6, "crop-flip", replace(config, epochs=6))
    both = plan("early-stop+no-augmentation").training(config)
    assert (both.epochs, both.augmentation) == (6, "none")
    assert plan("early-stop").training(TrainConfig(epochs=1)).epochs == 1


def test_an_early_stop_ends_at_a_low_rate() -> None:
    """The schedule is compressed, not cut off."""
    for schedule in ("step", "one-cycle"):
        config = TrainConfig(epochs=40, schedule=schedule)
        rates = []
        for settings in (config, plan("early-stop").training(config)):
            sgd, scheduler = optimiser(torch.nn.Linear(1, 1), settings, 5)
            for _ in range(5 * settings.epochs - 1):
                sgd.step()
                scheduler.step()
            rates.append(sgd.param_groups[0]["lr"])
        assert rates[1] <= max(0.0011, 3 * rates[0])


@pytest.mark.parametrize("kind", ["dilution", "clean-only"])
def test_a_share_of_clean_images_is_any_whole_percentage(kind: str) -> None:
    assert [plan(f"{kind}-{percent}").clean_percent for percent in (1, 7, 10, 50, 99)] == [1, 7, 10, 50, 99]
    assert plan(f"{kind}-10+cutmix").clean_percent == 10
    assert plan(f"cutmix+{kind}-10").clean_only == (kind == "clean-only")
    for wrong in ("0", "100", "05", "", "x", "10-"):
        with pytest.raises(ValueError, match=f"unknown countermeasure '{kind}-{wrong}'.* dilution and clean-only by any other percentage"):
            plan(f"{kind}-{wrong}")


def test_known_images_are_a_percentage_or_a_number_of_pairs() -> None:
    assert [plan(f"bridge-{pairs}").parts[0].known_pairs for pairs in (1, 37, 500, 99_999)] == [1, 37, 500, 99_999]
    assert [plan(name).parts[0].known_percent for name in ("diffusion", "diffusion-4", "diffusion-99")] == [10, 4, 99]
    assert plan("jpeg-50+bridge-7").known == plan("bridge-7").parts[0]
    assert plan("jpeg-50+d-vae").known is None
    for wrong in ("bridge", "bridge-0", "bridge-100000", "bridge-07", "diffusion-100", "d-vae-1"):
        with pytest.raises(ValueError, match=f"unknown countermeasure '{wrong}'.* bridge by any up to 99999"):
            plan(wrong)


def test_trainings_that_come_to_the_same_are_known() -> None:
    assert plan("dilution-10").trained_as("clean") == ("none", "clean")
    assert plan("dilution-10+cutmix").trained_as("clean") == ("cutmix", "clean")
    assert plan("dilution-10").trained_as("protected") == ("dilution-10", "protected")
    for data in ("clean", "protected"):
        assert plan("clean-only-10+cutmix").trained_as(data) == ("clean-only-10+cutmix", "clean")
        assert plan("jpeg-10+grayscale").trained_as(data) == ("jpeg-10+grayscale", data)


def test_a_dilution_has_its_control() -> None:
    assert plan("cutmix+dilution-7").control == "cutmix+clean-only-7"
    assert plan(plan("dilution-7").control).clean_percent == 7
    assert [plan(name).clean_percent for name in ("none", "jpeg-10", "cutmix+dilution-7", "clean-only-7")] == [0, 0, 7, 7]


def test_a_name_is_taken_apart_once() -> None:
    named = plan("jpeg-10+gaussian-blur+bit-depth-2")
    assert plan("jpeg-10+gaussian-blur+bit-depth-2") is named
    assert named.names == ("jpeg-10", "gaussian-blur", "bit-depth-2")
    assert named.kinds == ("jpeg", "gaussian-blur", "bit-depth")
    assert named.crafted_for(["blur", "jpeg-10", "bits-2"])
    assert not named.crafted_for(["blur", "bits-2"])
    assert not plan("none").crafted_for(["none"])
    splits = {path.name for room in ("sep", "pipeline") for path in (ROOT / room).rglob("*.py") if 'split("+")' in path.read_text()}
    assert splits == {"registry.py", "sweep_grid.py"}  # the latter splits the values of any setting that is a list


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("jpeg", "unknown countermeasure 'jpeg'"),
        ("", "unknown countermeasure ''"),
        ("cutout+", "unknown countermeasure ''"),
        ("none+cutout", "none is nothing"),
        ("cutout+jpeg-10+cutout", "one is named twice"),
        ("dilution-1+dilution-10", "one share of clean images"),
        ("dilution-10+clean-only-10", "one share of clean images"),
        ("none+clean-only-10", "none is nothing"),
        ("bridge-100+dilution-10", "one share of clean images"),
        ("bridge-100+diffusion-5", "one share of clean images"),
        ("ueraser+adversarial-4", "only one can look"),
        ("pretrained+nonlinear", "only one can say what the network begins with"),
        ("contrastive+pretrained-frozen", "only one can say what the network begins with"),
        ("cutmix+pretrained-frozen", "no batch is left to change"),
    ],
)
def test_what_cannot_be_is_refused_with_the_known_names(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"{reason}.*known are none, no-augmentation, .*jpeg-10.*dilution-50"):
        plan(name)


def test_costs_multiply() -> None:
    assert plan("adversarial-8").cost > plan("ueraser").cost > plan("trivial-augment").cost > plan("cutout").cost == 1
    assert plan("trivial-augment+adversarial-8").cost == plan("trivial-augment").cost * plan("adversarial-8").cost


def test_names_are_safe_as_file_names() -> None:
    for name in COUNTERMEASURES:
        assert PurePath(name).name == name
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


ON_BATCHES = ["cutout", "cutmix", "mixup", "trivial-augment", "ueraser", "adversarial-4", "adversarial-8", "random-warp"]


def test_the_list_of_those_that_change_batches_is_whole() -> None:
    assert [name for name in COUNTERMEASURES if plan(name).change(10)] == ON_BATCHES


@pytest.mark.parametrize("name", ON_BATCHES)
def test_the_same_seed_gives_the_same_training_whatever_was_drawn_before(images: Tensor, name: str) -> None:
    """It also leaves torch's own random state alone, from which others draw."""

    def trained(seed: int, before: int) -> Tensor:
        torch.manual_seed(5)
        network = build("resnet8", 4, 32, (127.0,) * 3, (64.0,) * 3)
        optimizer, scheduler = optimiser(network, TrainConfig(epochs=1, lr=0.01, warmup_epochs=0), 2)
        torch.manual_seed(before)
        state = torch.get_rng_state()
        batches = [(images, torch.arange(4))] * 2
        generator = torch.Generator().manual_seed(seed)
        result = train_epoch(network, optimizer, scheduler, batches, "crop-flip", generator, change=plan(name).change(4))
        assert np.isfinite(result.loss)
        assert torch.equal(torch.get_rng_state(), state)
        assert network.training
        return torch.nn.utils.parameters_to_vector(network.parameters()).detach()

    assert torch.equal(trained(0, before=1), trained(0, before=2))
    assert not torch.equal(trained(0, before=1), trained(1, before=1))


@pytest.mark.parametrize("name", ON_BATCHES)
def test_what_is_drawn_does_not_depend_on_the_images(name: str) -> None:
    """A clean and a protected victim of one seed therefore differ by their images alone."""
    torch.manual_seed(5)
    network = build("resnet8", 4, 32, (127.0,) * 3, (64.0,) * 3)
    change, states = plan(name).change(4), []
    assert change is not None
    for level in (20.0, 200.0):
        generator = torch.Generator().manual_seed(3)
        levels = level + torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(int(level)))
        change(AtRest(network), levels, torch.arange(4), generator)
        states.append(generator.get_state())
    assert torch.equal(*states)
