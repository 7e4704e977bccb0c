"""The baselines through the protect stage: budgets audited from the stored images, the same bytes interrupted or not."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.work import Chain, WorkFailed
from pipeline.config.presets import preset
from pipeline.config.schema import RunConfig
from pipeline.operations.verification import verify
from pipeline.protection import crafting, release
from pipeline.shards.pixels import Pixels, encode_png
from pipeline.shards.shard import read_shard, write_shard
from pipeline.shards.tensors import to_tensors
from pipeline.stages import addition, pack, protect
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Manifest, Shard
from pipeline.verify import main
from sep.budget import Budget, budget_used, check_budget
from sep.choices import Targets
from sep.craft_config import CraftConfig
from sep.methods.registry import METHODS, Method
from sep.methods.request import Request
from sep.pictures import one_size
from tests.fixtures.executors import LOCAL
from tests.fixtures.packed_run import digests
from tests.fixtures.pictures import class_folders, encoded, picture, write

BASELINES: tuple[Method, ...] = ("error-min", "error-min-class", "linear-separable", "autoregressive", "one-pixel")


def alone(packed: tuple[RunConfig, Folder], target: Path, method: Method, **changes: object) -> tuple[RunConfig, Folder]:
    """The packed images in a folder of their own, and no surrogate."""
    config, source = packed
    folder = Folder.open(str(target))
    for name in source.names(recursive=True):
        if name.startswith("pack/"):
            folder.write(name, source.read(name))
    own = replace(config.protect, method=method, **changes)  # type: ignore[arg-type]
    return replace(config, run=str(target), surrogate=replace(config.surrogate, epochs=2, lr=0.05), protect=own), folder


Finished = Callable[[Path, Method], tuple[RunConfig, Folder, Manifest]]


@pytest.fixture(scope="module")
def finished(packed: tuple[RunConfig, Folder], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A function that copies a release into a folder; each method's is made once."""

    @cache
    def made(method: Method) -> tuple[RunConfig, str]:
        config, folder = alone(packed, tmp_path_factory.mktemp(method), method)
        protect.execute(config, folder, LOCAL)
        return config, folder.path

    def copied(target: Path, method: Method) -> tuple[RunConfig, Folder, Manifest]:
        config, path = made(method)
        shutil.copytree(path, target, dirs_exist_ok=True)
        folder = Folder.open(str(target))
        return replace(config, run=str(target)), folder, Manifest.load(folder, "protect")

    return copied


def images(folder: Folder, stage: str) -> tuple[torch.Tensor, torch.Tensor]:
    """All training images of a stage as stored, and their labels."""
    shards = Manifest.load(folder, stage).shards["train"]
    return to_tensors([sample for shard in shards for sample in read_shard(folder.child(stage), shard)])


@pytest.mark.parametrize("method", BASELINES)
def test_every_baseline_needs_no_surrogate_and_keeps_its_own_budget(
    finished: Finished, tmp_path: Path, method: Method, capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder, manifest = finished(tmp_path, method)
    budget = Budget(**manifest.counts["budget"])
    assert budget == METHODS[method].budget(8, (3, 32, 32))
    clean, released = images(folder, "pack")[0], images(folder, "protect")[0]
    check_budget(released, clean, budget)
    assert int(budget_used(released, clean, budget.norm).min()) > 0.3 * budget.limit
    assert (manifest.counts["members"], manifest.counts["epochs"], manifest.counts["protected"]) == (0, [], 80)
    assert "surrogate" not in manifest.asked["inputs"]
    assert not folder.exists("protect/similarity.json")
    audit = verify(folder)
    assert (audit.faults, audit.budget) == ((), budget)
    assert audit.most_used == int(budget_used(released, clean, budget.norm).max())
    assert main(["--run", config.run]) == 0
    unit = {"linf": "of 8 levels", "l2": f"of {budget.limit} squared levels", "pixels": "1 of 1 pixels"}[budget.norm]
    assert unit in capsys.readouterr().out
    assert protect.execute(config, folder, LOCAL) == manifest
    rounds = manifest.counts.get("noise_rounds", 0)
    assert bool(rounds) is method.startswith("error-min")
    assert manifest.counts["gradients"] == 80 * rounds * (config.protect.steps if method == "error-min" else 1)
    assert manifest.counts["networks"] == (["resnet8"] if rounds else [])


@pytest.mark.parametrize("method", BASELINES)
def test_another_seed_gives_other_bytes(packed: tuple[RunConfig, Folder], finished: Finished, tmp_path: Path, method: Method) -> None:
    _, _, first = finished(tmp_path / "0", method)
    config, folder = alone(packed, tmp_path / "1", method)
    second = protect.execute(replace(config, seed=1), folder, LOCAL)
    assert (digests(first) == digests(second)) is (method == "one-pixel")  # which draws nothing


def one_more_pixel(before: Pixels, after: Pixels) -> Pixels:
    changed = after.copy()
    place = next(place for place in np.ndindex(after.shape[:2]) if (before[place] == after[place]).all())
    changed[place] = 255 - changed[place]
    return changed


def a_stronger_pattern(before: Pixels, after: Pixels) -> Pixels:
    stronger: Pixels = (before + 3 * (after.astype(int) - before)).clip(0, 255).astype(np.uint8)
    return stronger


@pytest.mark.parametrize(
    ("method", "tamper", "says"),
    [
        ("one-pixel", one_more_pixel, "changed by 2 pixels, budget 1"),
        ("autoregressive", a_stronger_pattern, "squared levels, budget 65025"),
        ("linear-separable", a_stronger_pattern, "squared levels, budget 110592"),
        ("error-min-class", a_stronger_pattern, "levels, budget 8"),
    ],
)
def test_an_image_that_breaks_its_budget_is_named_however_well_it_is_recorded(
    finished: Finished, tmp_path: Path, method: Method, tamper: Callable[[Pixels, Pixels], Pixels], says: str
) -> None:
    _, folder, manifest = finished(tmp_path, method)
    out, shard = folder.child("protect"), manifest.shards["train"][1]
    before, samples = read_shard(folder.child("pack"), shard_of(folder, shard.name)), read_shard(out, shard)
    pixels = tamper(before[3].pixels, samples[3].pixels)
    samples[3] = replace(samples[3], image=encode_png(pixels))
    written, _ = write_shard(out, shard.name, samples)
    said = json.loads(out.read("manifest.json"))
    said["shards"]["train"][1]["sha256"] = written.sha256
    out.write("manifest.json", json.dumps(said).encode())
    found = verify(folder).faults
    named = [fault for fault in found if fault.startswith(f"protect/{shard.name}: {samples[3].key} (")]
    assert any("): changed by" in fault and fault.endswith(says) for fault in named), found
    assert all(samples[3].key in fault or fault.startswith("protect/manifest.json: largest change") for fault in found)


def shard_of(folder: Folder, name: str) -> Shard:
    return next(shard for shard in Manifest.load(folder, "pack").shards["train"] if shard.name == name)


def test_a_budget_raised_in_the_manifest_is_seen(finished: Finished, tmp_path: Path) -> None:
    _, folder, _ = finished(tmp_path, "one-pixel")
    path = Path(folder.file("protect/manifest.json"))
    said = json.loads(path.read_text())
    said["counts"]["budget"] = {"norm": "pixels", "limit": 5}
    path.write_text(json.dumps(said))
    (fault,) = verify(folder).faults
    assert "budget {'norm': 'pixels', 'limit': 5}, but the method's is {'norm': 'pixels', 'limit': 1}" in fault
    said["asked"]["protect"]["method"] = "magic"
    path.write_text(json.dumps(said))
    with pytest.raises(ValueError, match="names the method 'magic'; known are sep"):
        verify(folder)


@pytest.mark.parametrize("method", ["error-min", "one-pixel"])
def test_what_was_prepared_is_made_once_and_shards_that_are_finished_are_kept(
    packed: tuple[RunConfig, Folder], finished: Finished, tmp_path: Path, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, whole = finished(tmp_path / "whole", method)
    config, folder = alone(packed, tmp_path / "broken", method)
    with monkeypatch.context() as patch:
        patch.setattr(protect, "PROTECT", Chain(release.read_clean, unlucky, release.release))
        with pytest.raises(WorkFailed, match=r"1 failed; the others are finished.*train-000002.tar.*no luck"):
            protect.execute(config, folder, LOCAL)
    stamps = {name: Path(folder.file(name)).stat().st_mtime_ns for name in folder.names(recursive=True) if name.startswith("protect/")}
    made = [name for name in stamps if "prepared" in name or name.endswith(".tar")]
    assert len([name for name in made if name.endswith(".tar")]) == 3
    seconds = json.loads(folder.read("protect/prepared.json"))["content"]["seconds"]
    again = protect.execute(config, folder, LOCAL)
    assert digests(again) == digests(whole)
    assert again.timing["preparation_seconds"] == seconds > 0
    for name in made:
        assert Path(folder.file(name)).stat().st_mtime_ns == stamps[name], f"{name} was made twice"


def unlucky(task: crafting.CraftingTask, shard: Shard, clean: release.Clean) -> release.Crafted:
    if shard.name == "train-000002.tar":
        raise ValueError("no luck")
    return release.craft_chosen(task, shard, clean)


def test_what_was_prepared_and_damaged_is_made_again(finished: Finished, tmp_path: Path) -> None:
    config, folder, whole = finished(tmp_path, "error-min")
    Path(folder.file("protect/manifest.json")).unlink()
    path = Path(folder.file("protect/prepared/train-000001.tar.pt"))
    path.write_bytes(path.read_bytes()[:-1])
    assert digests(protect.execute(config, folder, LOCAL)) == digests(whole)


def test_the_settings_of_the_surrogate_are_those_of_the_noise(finished: Finished, tmp_path: Path) -> None:
    config, folder, _ = finished(tmp_path, "error-min-class")
    with pytest.raises(ValueError, match=r"protect\.training\.lr: 0\.05 -> 0\.01"):
        protect.execute(replace(config, surrogate=replace(config.surrogate, lr=0.01)), folder, LOCAL)


def few_rounds(monkeypatch: pytest.MonkeyPatch, method: Method) -> None:
    monkeypatch.setitem(METHODS, method, replace(METHODS[method], noise_rounds=3))


def test_noise_that_ran_out_of_rounds_is_told(
    packed: tuple[RunConfig, Folder], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_rounds(monkeypatch, "error-min-class")
    config, folder = alone(packed, tmp_path, "error-min-class")
    hardly = replace(config, surrogate=replace(config.surrogate, lr=1e-6))  # trained so, a network guesses
    protect.execute(hardly, folder, LOCAL)
    (warned,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING" and "rounds" in record.getMessage())
    assert re.fullmatch(r"noise: after 3 rounds .* gets \d+\.\d % .* where 1 % is the aim: .*--protect\.noise-rounds 12 .*", warned)
    caplog.clear()
    asked = replace(hardly, overwrite=True, protect=replace(config.protect, noise_rounds=1))
    protect.execute(asked, folder, LOCAL)
    assert not any("rounds" in record.getMessage() for record in caplog.records if record.levelname == "WARNING")


RECIPES: dict[Method, tuple[dict[str, Any], tuple[str, ...]]] = {  # of names of their own: the settings and the views
    "error-min-class-momentum": ({"momentum": 0.9}, ("none",)),
    "error-min-class-grey": ({"momentum": 0.9, "normalised": True, "channels": "grey"}, ("none", "jpeg-10", "jpeg-50", "blur")),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_noise_of_a_class_with_settings_for_all_its_rounds(
    packed: tuple[RunConfig, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Method
) -> None:
    few_rounds(monkeypatch, recipe)
    settings, views = RECIPES[recipe]
    config, folder = alone(packed, tmp_path / "named", recipe)
    named = protect.execute(config, folder, LOCAL)
    config, folder = alone(packed, tmp_path / "spelled", "error-min-class", noise_rounds=3, **settings)
    spelled = protect.execute(replace(config, views=views), folder, LOCAL)
    assert digests(named) == digests(spelled)
    assert named.counts["noise_rounds"] == 3


def test_a_training_set_that_does_not_fit_is_refused_with_what_to_raise(packed: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = alone(packed, tmp_path, "error-min")
    with pytest.raises(ValueError, match=r"take 1 MB, but memory_limit_mb is 0: raise it \(--memory-limit-mb\)"):
        protect.execute(replace(config, memory_limit_mb=0), folder, LOCAL)


@pytest.mark.parametrize("method", BASELINES)
def test_only_images_of_protected_classes_are_changed(packed: tuple[RunConfig, Folder], tmp_path: Path, method: Method) -> None:
    config, folder = alone(packed, tmp_path, method, classes=("2", "5", "7"))
    counts = protect.execute(config, folder, LOCAL).counts
    assert (counts["protected"], counts["classes"]) == (24, [2, 5, 7])
    (clean, labels), (released, _) = images(folder, "pack"), images(folder, "protect")
    chosen = torch.isin(labels, torch.tensor([2, 5, 7]))
    assert torch.equal((clean != released).flatten(1).any(1), chosen)
    assert verify(folder).faults == ()


@pytest.mark.parametrize("method", ["bait", "bait-class"])
def test_noise_is_bound_to_the_wrong_classes_asked_for(packed: tuple[RunConfig, Folder], tmp_path: Path, method: Method) -> None:
    found: list[list[str]] = []
    plain: Method = "error-min" if method == "bait" else "error-min-class"
    asked: tuple[tuple[Method, Targets], ...] = ((plain, "shift"), (method, "shift"), (method, "random-class"))
    settings = {"noise_rounds": 2, "steps": 2, "classes": ("2", "5", "7")}
    for name, targets in asked:
        config, folder = alone(packed, tmp_path / f"{name} {targets}", name, targets=targets, **settings)
        manifest = protect.execute(config, folder, LOCAL)
        assert (manifest.counts["protected"], manifest.counts["noise_rounds"], manifest.counts["targets"]) == (24, 2, targets)
        assert verify(folder).faults == ()
        found.append(digests(manifest))
    assert all(len(set(shards)) == 3 for shards in zip(*found, strict=True))


def test_noise_needs_one_wrong_class_of_each_class() -> None:
    several: tuple[Targets, ...] = ("per-sample", "untargeted")
    for targets in several:
        with pytest.raises(ValueError, match=f"targets of bait-class must be shift or random-class, .*; got {targets}"):
            CraftConfig(method="bait-class", targets=targets)


@pytest.fixture
def source(tmp_path: Path) -> RunConfig:
    """A run of twelve images in class folders, packed."""
    class_folders(tmp_path / "data", {"ant": 4, "bee": 4, "cat": 4})
    base = preset("smoke")
    config = replace(base, data=str(tmp_path / "data"), run=str(tmp_path / "run"), pack=replace(base.pack, shard_images=5))
    config = replace(config, stages=("pack", "protect"), surrogate=replace(base.surrogate, batch_size=4))
    pack.execute(config, Folder.open(config.run), LOCAL)
    return config


@pytest.mark.parametrize("method", ["error-min-class", "linear-separable", "autoregressive", "one-pixel"])
def test_images_that_come_later_are_protected_like_the_others(source: RunConfig, tmp_path: Path, method: Method) -> None:
    config, folder = replace(source, protect=replace(source.protect, method=method)), Folder.open(source.run)
    protect.execute(config, folder, LOCAL)
    for name in ("bee/late.png", "cat/later.png", "cat/latest.png"):
        write(tmp_path / "data" / name, encoded(picture(7, 8, 8)))
    manifest = addition.execute(replace(config, add=config.data), folder, LOCAL)
    assert manifest is not None
    assert manifest.counts["images"] == 3
    assert main(["--run", config.run]) == 0
    if method in ("error-min-class", "one-pixel"):  # by what was found for their classes, and not by anything new
        added = Folder.open(f"{config.run}/added/0001")
        assert not [name for name in added.names(recursive=True) if "prepared" in name]
        table = torch.load(folder.file("protect/prepared/every-shard.pt"), weights_only=True)
        (clean, labels), perturb = images(added, "pack"), METHODS[method].perturb
        assert perturb is not None
        request = Request(clean, labels, 3, (), 0, config.protect.budget((3, 8, 8)), table)
        assert torch.equal(images(added, "protect")[0], one_size(perturb(request)))


def test_noise_of_each_image_is_not_made_for_images_that_come_later(source: RunConfig) -> None:
    with pytest.raises(ValueError, match="--add: error-min makes the noise of all images together"):
        replace(source, protect=replace(source.protect, method="error-min"), add=source.data)


def test_pixels_found_without_a_shard_are_found_again_with_it(packed: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = alone(packed, tmp_path / "whole", "one-pixel")
    whole = protect.execute(config, folder, LOCAL)
    config, folder = alone(packed, tmp_path / "broken", "one-pixel")
    name = Manifest.load(folder, "pack").shards["train"][1].name
    data = folder.child("pack").read(name)
    folder.child("pack").write(name, b"lost")
    with pytest.raises(WorkFailed, match=f"pixels: 1 failed; the others are finished.*{name}"):
        protect.execute(config, folder, LOCAL)
    assert protect.execute(replace(config, keep_going=True), folder, LOCAL).missing == [name]
    assert json.loads(folder.read("protect/prepared.json"))["content"]["without"] == [name]
    folder.child("pack").write(name, data)
    assert digests(protect.execute(config, folder, LOCAL)) == digests(whole)
