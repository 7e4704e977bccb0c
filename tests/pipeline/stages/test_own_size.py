"""Photographs of three sizes through every stage: packed, protected and released at their own size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from torch import Tensor

from cluster.resources import Resources
from pipeline.config.plan_config import PlanConfig
from pipeline.config.presets import from_tree, preset
from pipeline.config.schema import RunConfig, VictimConfig, to_tree
from pipeline.operations import image_folder
from pipeline.operations.probe import look
from pipeline.operations.verification import verify
from pipeline.results.findings import findings
from pipeline.results.run_results import RunResults
from pipeline.shards.shard import read_shard
from pipeline.shards.tables import read_table
from pipeline.sources.scan import scan
from pipeline.stages import addition, pack, protect, report, surrogate, victim
from pipeline.stages.sequence import check
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Manifest
from pipeline.training.known_images import known_keys
from pipeline.training.trial import Trial, VictimTask, task_of
from pipeline.training.victim_images import VictimImages
from sep.countermeasures.registry import Countermeasure, plan
from sep.views.own_size import fixed_view
from tests.fixtures.executors import LOCAL
from tests.fixtures.packed_run import digests
from tests.fixtures.pictures import encoded, picture, write

SIZES = ((24, 36), (40, 22), (31, 31))
SIDE = 16
SECRET = b"taken at home"
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def photos(root: Path, each: int, first: int = 0) -> None:
    """Pictures of three sizes in three classes, as JPEG with a comment and a colour profile."""
    for c, name in enumerate(("ant", "bee", "cat")):
        for i in range(first, first + each):
            coarse = Image.fromarray(picture(100 * c + i, 6, 6)).resize(SIZES[(i + c) % 3][::-1], Image.Resampling.BICUBIC)
            write(root / name / f"{i}.jpg", encoded(coarse, "jpeg", comment=SECRET, icc_profile=PROFILE))


def configured(data: Path, run: Path, **protect_settings: Any) -> RunConfig:
    base = preset("smoke")
    return replace(
        base,
        data=str(data),
        run=str(run),
        input_size=SIDE,
        pack=replace(base.pack, max_train_images=None, max_test_images=None, shard_images=5),
        surrogate=replace(base.surrogate, batch_size=6, augmentation="resized-crop-flip"),
        protect=replace(base.protect, batch_size=3, **protect_settings),
        victim=replace(base.victim, batch_size=6, augmentation="crop-flip"),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Folder]:
    """A run that is packed and has a surrogate."""
    root = tmp_path_factory.mktemp("photos")
    photos(root / "data" / "train", 4)
    photos(root / "data" / "test", 2, first=10)
    config = configured(root / "data", root / "run")
    folder = Folder.open(config.run)
    pack.execute(config, folder, LOCAL)
    check(config, folder)
    surrogate.execute(config, folder, LOCAL)
    return config, folder


def copied(trained: tuple[RunConfig, Folder], target: Path, **settings: Any) -> tuple[RunConfig, Folder]:
    config, source = trained
    folder = Folder.open(str(target))
    for name in source.names(recursive=True):
        if name.startswith(("pack/", "surrogate/")):
            folder.write(name, source.read(name))
    return replace(config, run=str(target), protect=replace(config.protect, **settings)), folder


def levels(folder: Folder, stage: str) -> dict[str, np.ndarray[Any, Any]]:
    manifest = Manifest.load(folder, stage)
    return {s.key: s.pixels for shard in manifest.shards["train"] for s in read_shard(folder.child(stage), shard)}


def test_a_release_has_every_picture_under_its_name_at_its_size(trained: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = copied(trained, tmp_path / "run", classes=("ant", "bee"))
    config = replace(config, victim=replace(config.victim, countermeasures=("none", "jpeg-10+dilution-50")))
    manifest = protect.execute(config, folder, LOCAL)
    assert manifest.counts["input_size"] == SIDE
    clean, protected = levels(folder, "pack"), levels(folder, "protect")
    rows = {row["key"]: row for row in read_table(folder.child("pack"), "samples.parquet").to_pylist() if row["split"] == "train"}
    for key, row in rows.items():
        assert protected[key].shape == clean[key].shape
        change = np.abs(protected[key].astype(int) - clean[key])
        assert change.max() == (0 if row["class_name"] == "cat" else 2)  # two steps of one level
    assert "no fault" in str(verify(folder))

    image_folder.export(folder, Folder.open(str(tmp_path / "release")))
    for key, row in rows.items():
        path = tmp_path / "release" / Path(row["source"]).relative_to("train").with_suffix(".png")
        released = Image.open(path)
        assert np.array_equal(np.asarray(released), protected[key])
        assert released.info["icc_profile"] == PROFILE
    assert len(list((tmp_path / "release").rglob("*.*"))) == 12
    held = {
        stage: b"".join(folder.read(f"{stage}/{shard.name}") for shard in Manifest.load(folder, stage).shards["train"])
        for stage in ("pack", "protect")
    }
    assert {stage: SECRET in data for stage, data in held.items()} == {"pack": True, "protect": False}

    victim.execute(config, folder, LOCAL)
    outcomes = read_table(folder.child("victim"), "results.parquet").to_pylist()
    assert len(outcomes) == 4
    report.execute(config, folder)
    assert "sizes, with short sides of at least" in folder.read("report/index.html").decode()
    pictures = folder.child("report").names()
    assert {"samples.png", "spectrum.png", "imperceptibility.png"} <= set(pictures)
    assert RunResults.read(folder).configuration(config)["input_size"] == SIDE
    assert from_tree(to_tree(config)) == config


@pytest.mark.parametrize("method", ["sep-fa", "sep-fa-vr", "error-min-class", "noise"])
def test_restarts_give_the_same_bytes(trained: tuple[RunConfig, Folder], tmp_path: Path, method: str) -> None:
    more = {"noise_rounds": 2, "checkpoints": None} if method == "error-min-class" else {}
    config, folder = copied(trained, tmp_path / "run", method=method, **more)
    whole = protect.execute(config, folder, LOCAL)
    assert len(whole.shards["train"]) >= 3
    Path(folder.file("protect/manifest.json")).unlink()
    Path(folder.file(f"protect/{whole.shards['train'][1].name}")).unlink()
    assert digests(protect.execute(config, folder, LOCAL)) == digests(whole)
    assert verify(folder).faults == ()
    if method == "error-min-class":
        noise = torch.load(folder.file("protect/prepared/every-shard.pt"), weights_only=True)
        assert noise.shape == (3, 3, SIDE, SIDE)


def test_views_are_made_to_pictures_as_they_are_stored(trained: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = copied(trained, tmp_path / "run", momentum=0.9, normalised=True)
    config = replace(config, views=("none", "jpeg-50", "noise-4"))
    surrogate.execute(replace(config, overwrite=True), folder, LOCAL)
    assert protect.execute(config, folder, LOCAL).counts["views"] == ["none", "jpeg-50", "noise-4"]
    assert verify(folder).faults == ()


def test_streamed_and_held_pictures_are_seen_alike(trained: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = copied(trained, tmp_path / "run")
    protect.execute(config, folder, LOCAL)
    streamed = replace(config, memory_limit_mb=0)
    victim.execute(streamed, folder, LOCAL)
    assert len(read_table(folder.child("victim"), "results.parquet")) == 2


@pytest.mark.parametrize("memory_limit_mb", [0, 100])
@pytest.mark.parametrize("name", ["orthogonal-projection", "class-residual"])
def test_what_is_fitted_to_images_takes_pictures_of_their_own_size(
    trained: tuple[RunConfig, Folder], tmp_path: Path, name: str, memory_limit_mb: int
) -> None:
    config, folder = trained
    pack, cell = Manifest.load(folder, "pack"), Trial("resnet8", "clean", f"jpeg-50+{name}", 0)
    config = replace(config, memory_limit_mb=memory_limit_mb, victim=replace(config.victim, input_size=24))
    protected = replace(Manifest.load(folder, "surrogate"), counts={"classes": [0, 1, 2]})
    task = task_of(cell, config, folder, pack, protected, Resources(((1, 0),), 1, 1), 1)

    def seen(task: VictimTask) -> Tensor:
        opened = VictimImages(task, 7, torch.device("cpu")).batches(replace(task.config, augmentation="crop-flip"))
        return torch.cat([images for images, _ in opened.epoch(0)])

    images, others = seen(task), seen(replace(task, plan=plan("jpeg-50")))
    assert images.shape == others.shape == (12, 3, 24, 24)
    assert (images.dtype, others.dtype) == (torch.float32, torch.uint8)
    assert 0.5 < float((images - others).abs().mean()) < 40  # the same windows of the same pictures, changed


@pytest.mark.parametrize("name", ["d-vae", "diffusion-20", "bridge-3"])
def test_purifiers_take_pictures_of_their_own_size(
    trained: tuple[RunConfig, Folder], put_countermeasure: Callable[[str, Countermeasure], None], name: str
) -> None:
    config, folder = trained
    part = plan(name).parts[0]
    assert part.fitted is not None
    put_countermeasure(name, replace(part, fitted=partial(part.fitted, steps=2)))  # type: ignore[call-arg]
    pack = Manifest.load(folder, "pack")
    released = replace(pack, counts={"classes": [0, 1, 2]})
    cells = [Trial("resnet8", "clean", each, 0) for each in ("none", name)]
    tasks = [task_of(cell, config, folder, pack, released, Resources(((1, 0),), 1, 1), 1) for cell in cells]
    before, after = (VictimImages(task, 7, torch.device("cpu")) for task in tasks)
    known = known_keys(tasks[1], part) if part.clean_images else ()
    whole, rest = (
        {sample.key for shard in pack.shards["train"] for sample in each.read(folder.child("pack"), shard)} for each in (before, after)
    )
    assert whole - rest == set(known)
    picture = torch.randint(256, (1, 3, *SIZES[0]), dtype=torch.uint8)
    changed = after.transform(picture, torch.tensor([0]))
    assert changed.shape == picture.shape
    assert 0 < float((changed - picture).abs().mean()) < 100


def test_victims_may_see_pictures_larger_than_the_surrogate_did(trained: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = copied(trained, tmp_path / "run")
    protect.execute(config, folder, LOCAL)
    larger = replace(config, victim=replace(config.victim, input_size=24))
    victim.execute(larger, folder, LOCAL)
    manifest = Manifest.load(folder, "victim")
    assert manifest.asked["victim"]["input_size"] == 24
    tree = RunResults.read(folder).configuration(replace(config, victim=VictimConfig()))
    assert (tree["input_size"], tree["victim"]["input_size"]) == (SIDE, 24)
    said = f"Victims see images at 24 pixels a side; the release was made for {SIDE}."
    assert said in findings(RunResults.read(folder)).overall
    with pytest.raises(ValueError, match=r"victim\.input_size"):
        victim.execute(config, folder, LOCAL)
    same = replace(config, overwrite=True, victim=replace(config.victim, input_size=SIDE))
    victim.execute(same, folder, LOCAL)
    assert victim.execute(config, folder, LOCAL).digest == Manifest.load(folder, "victim").digest  # asks for the same
    assert RunResults.read(folder).configuration(config)["victim"]["input_size"] is None


def test_a_method_that_knows_no_input_size_does_not_hide_that_of_the_victims(trained: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = copied(trained, tmp_path / "run", method="noise")
    protect.execute(config, folder, LOCAL)
    assert RunResults.read(folder).configuration(config)["input_size"] == SIDE


def test_pictures_of_further_sizes_are_added(trained: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = copied(trained, tmp_path / "run")
    protect.execute(config, folder, LOCAL)
    write(tmp_path / "more" / "bee" / "new.jpg", encoded(picture(77, 19, 45), "jpeg"))
    write(tmp_path / "more" / "ant" / "new.jpg", encoded(picture(78, 50, 21), "jpeg"))
    adding = replace(config, add=str(tmp_path / "more"), input_size=None)  # as the run records it
    made = addition.execute(adding, folder, LOCAL)
    assert made is not None
    assert (made.counts["images"], made.counts["input_size"]) == (2, SIDE)
    added = Folder.open(f"{config.run}/added/0001")
    assert {pixels.shape[:2] for pixels in levels(added, "protect").values()} == {(19, 45), (50, 21)}
    assert verify(added, Manifest.load(folder, "protect")).faults == ()


def test_a_plan_looks_at_pictures_as_networks_would(trained: tuple[RunConfig, Folder]) -> None:
    config = PlanConfig(**vars(trained[0]))
    dataset = scan(config)
    images = look(dataset.split("train"), dataset.reader, config)
    assert images.pixels.shape == (12, 3, SIDE, SIDE)
    sizes = [(Path(config.data) / entry.source).stat().st_size for entry in dataset.split("train")]
    assert images.clean_bytes == pytest.approx(np.mean(sizes))
    assert fixed_view(images.pixels, SIDE) is not None


def test_what_cannot_be_done_is_refused_in_one_line(trained: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = copied(trained, tmp_path / "run")
    with pytest.raises(ValueError, match="give --input-size N, the side"):
        check(replace(config, input_size=None), folder)
    with pytest.raises(ValueError, match="input-size = 20, but the surrogate was trained with 16"):
        protect.execute(replace(config, input_size=20), folder, LOCAL)
    with pytest.raises(
        ValueError, match=r"linear-separable protects only images of one size: give .*--input-size None, or take one of sep, "
    ):
        replace(config, protect=replace(config.protect, method="linear-separable"))
    with pytest.raises(ValueError, match="resize-crop, through which networks look anyway"):
        replace(config, views=("none", "resize-crop"))
    with pytest.raises(ValueError, match=r"victim\.input-size must be at least 1 pixel, got 0"):
        replace(config, victim=replace(config.victim, input_size=0))
    with pytest.raises(ValueError, match=r"victim\.networks: densenet121 cannot take images of 3 x 3 .* or give another --input-size"):
        check(replace(config, victim=replace(config.victim, input_size=3, networks=("densenet121",))), folder)
    with pytest.raises(ValueError, match="input-size must be at least 1 pixel, got 0"):
        replace(config, input_size=0)
    with pytest.raises(ValueError, match=r"densenet121 cannot take images of 3 x 3 .* or give another --input-size"):
        check(replace(config, input_size=3, surrogate=replace(config.surrogate, networks=("densenet121",))), folder)
