"""Views through the stages: recorded, the same bytes however a shard is crafted, and a change where they change."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.config.presets import from_tree
from pipeline.config.schema import ProtectConfig, RunConfig
from pipeline.config.seeds import derive
from pipeline.config.sight import looked_through
from pipeline.operations.verification import verify
from pipeline.protection import class_means
from pipeline.protection.checkpoints import Ensemble, choose, read_index
from pipeline.protection.class_means import SUM_SHARD
from pipeline.protection.crafting import CraftingTask, protect_images
from pipeline.results.run_results import RunResults
from pipeline.results.summary import headline
from pipeline.shards.shard import read_shard
from pipeline.shards.tensors import to_tensors
from pipeline.stages import protect, surrogate
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Manifest, Shard
from sep.ensemble import class_sums
from sep.methods.registry import Method
from sep.pictures import one_size
from sep.views.registry import Look, view
from tests.fixtures import packed_run
from tests.fixtures.executors import LOCAL
from tests.fixtures.packed_run import digests

MIX = ("none", "jpeg-10", "noise-4")


def seen(packed: tuple[RunConfig, Folder], target: Path, method: Method = "sep-fa", **settings: object) -> tuple[RunConfig, Folder]:
    """The packed run in a folder of its own, with views, and with a surrogate trained through them."""
    config, folder = packed_run.copy(packed, target, method=method, **settings)
    packed_run.write_checkpoints(folder, ("resnet8",), views=list(MIX))
    return replace(config, views=MIX), folder


def test_class_means_are_those_of_each_checkpoint_and_view(
    packed: tuple[RunConfig, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = seen(packed, tmp_path)
    monkeypatch.setattr(class_means, "use_cpu", lambda threads: None)
    ensemble = Ensemble(folder, choose(read_index(folder), 2), views=MIX)
    shard = Manifest.load(folder, "pack").shards["train"][0]
    images, labels = to_tensors(read_shard(folder.child("pack"), shard))
    sums, _ = SUM_SHARD(ensemble, 10, 7, shard, 5)
    members = ensemble.members()
    assert [member.view.name for member in members] == [*MIX, *MIX]
    assert members[0].network is members[2].network
    for member, total in zip(members, sums, strict=True):
        look = Look(derive(5, "class means", member.view.name, shard.name))
        wanted, _ = class_sums(member.network, [(view(member.view.name).on_levels(images.float(), look), labels)], 10)
        assert torch.allclose(total, wanted, rtol=1e-6, atol=1e-5)
    assert not torch.equal(sums[0], sums[1])


@pytest.mark.parametrize("method", ["sep-fa", "sep-fa-vr"])
def test_a_release_through_views_is_recorded_and_the_same_after_a_restart(
    packed: tuple[RunConfig, Folder], tmp_path: Path, method: Method
) -> None:
    config, folder = seen(packed, tmp_path, method)
    whole = protect.execute(config, folder, LOCAL)
    assert (whole.counts["views"], whole.asked["protect"]["views"]) == (list(MIX), list(MIX))
    assert whole.counts["gradients"] == 80 * config.protect.gradients_per_image(2)
    assert len(torch.load(folder.file("protect/prepared/every-shard.pt"), weights_only=True)) == 2 * 3
    assert verify(folder).faults == ()
    Path(folder.file("protect/manifest.json")).unlink()
    Path(folder.file(f"protect/{whole.shards['train'][1].name}")).unlink()
    assert digests(protect.execute(config, folder, LOCAL)) == digests(whole)
    plain, other = packed_run.copy(packed, tmp_path / "plain", method=method)
    assert digests(protect.execute(plain, other, LOCAL)) != digests(whole)


@pytest.mark.parametrize("method", ["sep", "tap"])
def test_the_cut_into_shards_decides_nothing_of_what_views_draw(packed: tuple[RunConfig, Folder], tmp_path: Path, method: Method) -> None:
    config, folder = seen(packed, tmp_path, method, steps=3)
    chosen = choose(read_index(folder), config.protect.per_network)
    task = CraftingTask(
        ensemble=Ensemble(folder, chosen, views=MIX),
        config=config.protect,
        seed=5,
        made_from="this",
        classes=tuple(range(10)),
        clean=folder.child("pack"),
        out=folder.child("protect"),
        prepared=folder.child("protect"),
        prepared_sha256="",
        budget=config.protect.budget((3, 32, 32)),
    )
    shard = Manifest.load(folder, "pack").shards["train"][0]
    samples = read_shard(task.clean, shard)
    images, labels = to_tensors(samples)
    keys = [sample.key for sample in samples]
    whole = one_size(protect_images(task, shard.name, images, labels, keys))
    again = protect_images(task, "another", images[2:7], labels[2:7], keys[2:7])
    assert torch.equal(one_size(again), whole[2:7])


def test_other_views_are_another_configuration(packed: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = seen(packed, tmp_path, "error-min-class", noise_rounds=2)
    plain = replace(config, views=("none",), surrogate=replace(config.surrogate, lr=0.05))
    through = replace(plain, views=("none", "gray"))
    made = protect.execute(plain, folder, LOCAL)
    assert "views" not in made.asked["protect"]
    with pytest.raises(ValueError, match=r"protect\.views: None -> \['none', 'gray'\]"):
        protect.execute(through, folder, LOCAL)
    again = protect.execute(replace(through, overwrite=True), folder, LOCAL)
    assert digests(again) != digests(made)
    with pytest.raises(ValueError, match=r"surrogate\.views: \['none', 'jpeg-10', 'noise-4'\] -> None"):
        surrogate.execute(plain, folder, LOCAL)


def test_a_surrogate_trained_through_other_views_is_refused(packed: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = seen(packed, tmp_path)
    with pytest.raises(ValueError, match="--views none blur, but the surrogate was trained through none jpeg-10 noise-4: give these"):
        protect.execute(replace(config, views=("none", "blur")), folder, LOCAL)


def test_error_minimising_noise_in_grey_with_patterns_through_views(packed: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    settings = {"momentum": 0.9, "normalised": True, "channels": "grey", "patterns": 3, "noise_rounds": 3}
    config, folder = seen(packed, tmp_path, "error-min-class", **settings)
    config = replace(config, surrogate=replace(config.surrogate, lr=0.05))
    made = protect.execute(config, folder, LOCAL)
    assert (made.counts["noise_rounds"], made.counts["views"]) == (3, list(MIX))
    noise = torch.load(folder.file("protect/prepared/every-shard.pt"), weights_only=True)
    assert noise.shape == (30, 1, 32, 32)
    for shard in made.shards["train"]:
        released = read_shard(folder.child("protect"), shard)
        clean = {sample.key: sample for sample in read_shard(folder.child("pack"), packed_shard(folder, shard.name))}
        for sample in released:
            pattern = derive(config.seed, "error-min-class", sample.key) % 3
            wanted = torch.from_numpy(clean[sample.key].pixels).int() + noise[3 * sample.label + pattern, 0, :, :, None]
            assert torch.equal(torch.from_numpy(sample.pixels).int(), wanted.clamp(0, 255))
    assert verify(folder).faults == ()


def test_aue_is_error_minimising_noise_through_the_augmentation_of_contrastive_learning(
    packed: tuple[RunConfig, Folder], tmp_path: Path
) -> None:
    settings = {"noise_rounds": 2, "steps": 2}
    config, folder = seen(packed, tmp_path / "aue", "aue", **settings)
    plain = replace(config, views=("none",), surrogate=replace(config.surrogate, lr=0.05))
    made = protect.execute(plain, folder, LOCAL)
    assert made.counts["views"] == made.asked["protect"]["views"] == ["simclr-60"]
    assert protect.execute(plain, folder, LOCAL) == made
    other, same = seen(packed, tmp_path / "error-min", "error-min", **settings)
    through = replace(plain, protect=other.protect, views=("simclr-60",))
    assert digests(protect.execute(through, same, LOCAL)) == digests(made)
    assert looked_through(replace(plain, views=MIX)).views == MIX  # those that are given
    assert looked_through(replace(through, views=("none",))).views == ("none",)


def packed_shard(folder: Folder, name: str) -> Shard:
    return next(shard for shard in Manifest.load(folder, "pack").shards["train"] if shard.name == name)


def test_what_a_run_says_names_its_views(packed: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = seen(packed, tmp_path, steps=1)
    protect.execute(config, folder, LOCAL)
    results = RunResults.read(folder)
    assert headline(results)["views"] == "none, jpeg-10, noise-4"
    tree = json.loads(json.dumps(results.configuration(replace(config, views=("none",)))))
    assert tree["views"] == list(MIX)
    assert from_tree(tree).views == MIX
    noise = replace(config, views=("none",), protect=ProtectConfig(method="noise"), overwrite=True)
    protect.execute(noise, folder, LOCAL)
    assert RunResults.read(folder).configuration(noise)["views"] == ["none"]  # whatever the surrogate was trained through


@pytest.mark.parametrize(
    ("views", "says"), [(["none", "sepia"], "views: unknown view 'sepia'; known are none"), ([], "views: a mix needs")]
)
def test_a_mix_that_cannot_be_is_refused_in_one_line(views: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        from_tree({"views": views})
    assert "\n" not in str(error.value)
