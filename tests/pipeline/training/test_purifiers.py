"""Adversaries who purify a release before they train on it: the images that they know, and the accuracy that they win back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch

from cluster.resources import Resources
from pipeline.config.presets import preset
from pipeline.config.schema import RunConfig
from pipeline.shards.tensors import load
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Manifest
from pipeline.training.batches import unchanged
from pipeline.training.known_images import Without, check_known_images, known_images, known_keys
from pipeline.training.trial import Trial, task_of
from pipeline.training.victim_images import VictimImages
from sep.countermeasures.registry import Countermeasure, plan
from sep.pictures import one_size
from tests.fixtures import shortcut_run
from tests.fixtures.shortcut_run import CLASSES, TRAIN, accuracy

Run = tuple[RunConfig, Folder]
STEPS = {"d-vae": 250, "diffusion-20": 400, "bridge-48": 60}  # as many as these pictures need
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """On images this small, more threads only wait for one another."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A release with one pattern for each class."""
    return shortcut_run.write(tmp_path_factory.mktemp("run"))


@pytest.fixture
def short(put_countermeasure: Callable[[str, Countermeasure], None]) -> None:
    """Let purifiers learn for few steps."""
    for name, steps in STEPS.items():
        part = plan(name).parts[0]
        assert part.fitted is not None
        put_countermeasure(name, replace(part, fitted=partial(part.fitted, steps=steps)))  # type: ignore[call-arg]


def known(name: str) -> Countermeasure:
    part = plan(name).known
    assert part is not None
    return part


def test_pairs_win_back_what_an_ordinary_training_loses(run: Run, short: None) -> None:
    assert accuracy(run, "bridge-48") > 90


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_it_wins_back_what_is_lost_and_is_as_good_on_clean_images(run: Run, short: None, name: str) -> None:
    clean = accuracy(run, "none", "clean")
    assert accuracy(run, "none") < 45
    assert accuracy(run, name) > 80
    assert accuracy(run, name, "clean") > clean - 5


@pytest.mark.parametrize(("name", "count"), [("bridge-48", 48), ("diffusion-20", 48), ("diffusion", 24)])
@pytest.mark.parametrize("data", ["clean", "protected"])
def test_known_images_are_not_trained_on(run: Run, name: str, count: int, data: str) -> None:
    task = shortcut_run.task(run, name, data)
    keys = known_keys(task, known(name))
    assert len(keys) == count
    assert keys == known_keys(shortcut_run.task(run, name, "clean"), known(name))
    images, _ = load(run[1].child(task.train.stage), task.train.shards["train"], Without(keys))
    assert len(images) == TRAIN - count
    shown = {image.numpy().tobytes() for image in images}
    pairs = known_images(task, known(name), unchanged, 0).images
    assert not shown & {image.numpy().tobytes() for image in pairs}


def test_a_pair_is_an_image_as_it_was_and_as_it_was_released(run: Run) -> None:
    pairs = known_images(shortcut_run.task(run, "bridge-30"), known("bridge-30"), unchanged, 0)
    clean, _ = shortcut_run.pictures(TRAIN, 0)
    assert len(pairs.labels) == 30
    steps = (one_size(pairs.images).int() - pairs.labels.int()).abs()
    assert int(steps.max()) == shortcut_run.EPS
    assert float(steps.float().mean()) > shortcut_run.EPS - 0.5
    assert {image.numpy().tobytes() for image in pairs.labels} < {image.numpy().tobytes() for image in clean}


def test_a_diffusion_learns_from_clean_images_and_their_labels(run: Run) -> None:
    opened = known_images(shortcut_run.task(run, "diffusion-50"), known("diffusion-50"), unchanged, 0)
    clean, labels = shortcut_run.pictures(TRAIN, 0)
    of = {image.numpy().tobytes(): int(label) for image, label in zip(clean, labels, strict=True)}
    assert len(opened.labels) == TRAIN // 2
    assert [of[image.numpy().tobytes()] for image in opened.images] == opened.labels.tolist()
    assert opened.labels.bincount().tolist() == [TRAIN // 2 // CLASSES] * CLASSES


def test_known_images_pass_what_comes_first(run: Run) -> None:
    seen = []

    def fitted(epoch, _):  # type: ignore[no-untyped-def]
        seen.extend(epoch(0))
        return lambda images, _: images

    name = "grayscale+bridge-32"
    parts = (plan("grayscale").parts[0], replace(known(name), fitted=fitted))
    task = replace(shortcut_run.task(run, name), plan=replace(plan(name), parts=parts))
    VictimImages(task, 0, CPU)
    assert len(seen) == 1
    assert all(torch.equal(form[:, 0], form[:, 1]) for form in seen[0])


def test_the_outcome_of_pairs_depends_on_the_release(run: Run) -> None:
    """Also where the victim sees clean images."""
    config, folder = run
    pack, protect = Manifest.load(folder, "pack"), Manifest.load(folder, "protect")
    for name, differs in (("bridge-48", True), ("diffusion", False), ("d-vae", False)):
        made = [
            task_of(Trial("resnet8", "clean", name, 0), config, folder, pack, each, Resources(((1, 0),), 1, 1), 1).made_from
            for each in (protect, replace(protect, hash="another"))
        ]
        assert (made[0] != made[1]) == differs, name


@pytest.mark.parametrize("name", ["d-vae", "diffusion", "bridge-48", "jpeg-50+bridge-48"])
def test_streamed_images_are_refused_in_one_line(run: Run, name: str) -> None:
    with pytest.raises(ValueError, match=rf"victim.countermeasures: {name.replace('+', '.')} .*raise --memory-limit-mb"):
        shortcut_run.task((replace(run[0], memory_limit_mb=0), run[1]), name)


@pytest.mark.parametrize(("name", "said"), [("bridge-241", "241 of 240"), ("bridge-217", "217 of 240")])
def test_so_many_known_images_that_too_few_are_left_are_refused_before_packing(name: str, said: str) -> None:
    config = replace(preset("smoke"), victim=replace(shortcut_run.VICTIM, countermeasures=("none", name)))
    labels = dict.fromkeys(map(str, range(TRAIN)), 0)
    with pytest.raises(ValueError, match=rf"victim.countermeasures: {name} sets {said} protected images aside.*name another number"):
        check_known_images(config, ["0", "1"], TRAIN, lambda _: labels)


def test_others_are_not() -> None:
    config = replace(preset("smoke"), victim=replace(shortcut_run.VICTIM, countermeasures=("none", "diffusion-1", "bridge-216", "d-vae")))
    check_known_images(config, ["0", "1"], TRAIN, lambda _: dict.fromkeys(map(str, range(TRAIN)), 0))
