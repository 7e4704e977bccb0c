"""Protect: the same bytes in any order and after any interruption; errors that name altered inputs; the budget in integers.

Classes, targets and checkpoints are those of the configuration.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.work import WorkFailed
from pipeline.config.schema import RunConfig
from pipeline.operations.verification import verify
from pipeline.protection.checkpoints import Ensemble, choose, read_index
from pipeline.shards.shard import Sample, read_shard
from pipeline.shards.tables import read_table
from pipeline.shards.tensors import to_tensors
from pipeline.stages import protect
from pipeline.storage.folder import Folder
from pipeline.storage.layout import SAMPLES
from pipeline.storage.stage import Manifest
from sep.craft import Method, craft
from sep.quality import ssim
from tests.fixtures.executors import LOCAL
from tests.fixtures.packed_run import copy, digests, write_checkpoints


def both(folder: Folder) -> list[tuple[Sample, Sample]]:
    """Return all training images in order, clean and released."""
    pairs: list[tuple[Sample, Sample]] = []
    for shard, other in zip(Manifest.load(folder, "pack").shards["train"], Manifest.load(folder, "protect").shards["train"], strict=True):
        clean, released = read_shard(folder.child("pack"), shard), read_shard(folder.child("protect"), other)
        pairs += zip(clean, released, strict=True)
    return pairs


@pytest.mark.parametrize("method", ["sep", "sep-fa", "sep-fa-vr", "sep-drawn", "sep-fa-drawn", "tap", "noise"])
def test_every_method_protects_within_the_budget(packed: tuple[RunConfig, Folder], tmp_path: Path, method: Method) -> None:
    config, folder = copy(packed, tmp_path, method=method, eps_levels=2, steps=3)
    manifest = protect.execute(config, folder, LOCAL)
    rows = read_table(folder.child("protect"), SAMPLES).to_pylist()
    assert len(rows) == 80
    assert manifest.counts["linf_levels"] == max(row["linf_levels"] for row in rows) == 2
    assert manifest.counts["gradients"] == 80 * config.protect.gradients_per_image(config.protect.per_network)
    assert len(manifest.counts["epochs"]) == config.protect.per_network
    clean = {s.key: s for shard in Manifest.load(folder, "pack").shards["train"] for s in read_shard(folder.child("pack"), shard)}
    for shard in manifest.shards["train"]:
        for sample in read_shard(folder.child("protect"), shard):
            before = clean.pop(sample.key)
            assert (sample.label, sample.info) == (before.label, before.info)
            assert abs(sample.pixels.astype(int) - before.pixels.astype(int)).max() <= 2
            assert (sample.pixels != before.pixels).any()
    assert not clean
    assert not folder.child("protect").child("parts").exists()


def test_interrupted_stage_goes_on_and_repeats_no_finished_shard(packed: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = copy(packed, tmp_path / "whole")
    whole = protect.execute(config, folder, LOCAL)
    config, folder = copy(packed, tmp_path / "broken")
    broken, clean = Manifest.load(folder, "pack").shards["train"][2], folder.child("pack")
    data = clean.read(broken.name)
    clean.write(broken.name, data[:-600])
    with pytest.raises(WorkFailed, match=rf"{broken.name}.*altered or truncated"):
        protect.execute(config, folder, LOCAL)
    assert not folder.exists("protect/manifest.json")

    clean.write(broken.name, data)
    if config.protect.aligns_features:  # the means need every shard, so no shard was crafted before the failure
        assert not [name for name in folder.child("protect").names() if name.endswith(".tar")]
    assert digests(protect.execute(config, folder, LOCAL)) == digests(whole)


def test_finished_shards_are_not_crafted_again(packed: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = copy(packed, tmp_path, method="sep")
    shards, clean = Manifest.load(folder, "pack").shards["train"], folder.child("pack")
    lost = clean.read(shards[1].name)
    clean.write(shards[1].name, b"lost")
    with pytest.raises(WorkFailed, match="1 failed; the others are finished"):
        protect.execute(config, folder, LOCAL)
    written = {
        name: Path(folder.child("protect").file(name)).stat().st_mtime_ns
        for name in folder.child("protect").names()
        if name.endswith(".tar")
    }
    assert set(written) == {shard.name for shard in shards} - {shards[1].name}
    clean.write(shards[1].name, lost)
    manifest = protect.execute(config, folder, LOCAL)
    assert len(manifest.shards["train"]) == len(shards)
    for name, stamp in written.items():
        assert Path(folder.child("protect").file(name)).stat().st_mtime_ns == stamp, f"{name} was crafted twice"


def test_a_finished_shard_that_was_altered_is_crafted_again(packed: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = copy(packed, tmp_path, method="sep")
    clean, names = folder.child("pack"), [shard.name for shard in Manifest.load(folder, "pack").shards["train"]]
    lost = clean.read(names[3])
    clean.write(names[3], b"lost")
    with pytest.raises(WorkFailed, match=names[3]):
        protect.execute(config, folder, LOCAL)
    clean.write(names[3], lost)
    out = folder.child("protect")
    data = bytearray(out.read(names[0]))
    data[len(data) // 2] ^= 1
    out.write(names[0], bytes(data))
    out.write(f"parts/{names[1]}.parquet", out.read(f"parts/{names[1]}.parquet")[:-1])
    stamp = Path(out.file(names[2])).stat().st_mtime_ns
    protect.execute(config, folder, LOCAL)
    assert verify(folder).faults == ()
    assert Path(out.file(names[2])).stat().st_mtime_ns == stamp


def test_one_release_is_crafted_towards_one_set_of_means(packed: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = copy(packed, tmp_path, method="sep-fa")
    whole = protect.execute(config, folder, LOCAL)
    means = Path(folder.file("protect/prepared/every-shard.pt"))
    stamp = means.stat().st_mtime_ns
    Path(folder.file("protect/manifest.json")).unlink()
    Path(folder.file("protect/train-000001.tar")).unlink()
    assert protect.execute(config, folder, LOCAL).counts == whole.counts
    assert means.stat().st_mtime_ns == stamp, "the means were made again"
    Path(folder.file("protect/manifest.json")).unlink()
    means.write_bytes(b"damaged")
    assert digests(protect.execute(config, folder, LOCAL)) == digests(whole)
    assert means.stat().st_size > 100


def test_batch_size_is_no_other_release(packed: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = copy(packed, tmp_path)
    first = protect.execute(config, folder, LOCAL)
    assert protect.execute(replace(config, protect=replace(config.protect, batch_size=3)), folder, LOCAL) == first
    assert first.counts["precision"] == first.counts["class_means_precision"] == "float32"  # what auto is on a CPU


def test_altered_checkpoint_is_named(packed: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = copy(packed, tmp_path)
    file = "surrogate/resnet8/epoch_0002/weights.pt"
    data = bytearray(folder.read(file))
    data[len(data) // 2] ^= 1
    folder.write(file, bytes(data))
    with pytest.raises(WorkFailed, match=r"epoch_0002/weights\.pt was altered"):
        protect.execute(config, folder, LOCAL)


def test_changed_configuration_stops_by_name_and_overwrite_redoes(packed: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = copy(packed, tmp_path)
    first = protect.execute(config, folder, LOCAL)
    assert protect.execute(config, folder, LOCAL) == first
    other = replace(config, protect=replace(config.protect, eps_levels=1))
    with pytest.raises(ValueError, match=r"protect\.eps_levels: 8 -> 1"):
        protect.execute(other, folder, LOCAL)
    redone = protect.execute(replace(other, overwrite=True), folder, LOCAL)
    assert redone.counts["linf_levels"] == 1
    assert digests(redone) != digests(first)


@pytest.mark.parametrize("method", ["sep", "sep-fa"])
def test_images_of_other_classes_are_released_as_they_are(packed: tuple[RunConfig, Folder], tmp_path: Path, method: Method) -> None:
    names = Manifest.load(packed[1], "pack").counts["classes"]
    config, folder = copy(packed, tmp_path, method=method, eps_levels=2, steps=3, classes=("7", names[2], "5"))
    counts = protect.execute(config, folder, LOCAL).counts
    assert (counts["images"], counts["protected"], counts["classes"]) == (80, 24, [2, 5, 7])
    assert counts["gradients"] == 24 * 3 * 2
    rows = {row["key"]: row for row in read_table(folder.child("protect"), SAMPLES).to_pylist()}
    for clean, released in both(folder):
        row, change = rows[clean.key], abs(released.pixels.astype(int) - clean.pixels.astype(int)).max()
        assert (released.key, released.label, released.info) == (clean.key, clean.label, clean.info)
        assert row["linf_levels"] == change
        if clean.label in (2, 5, 7):
            assert 1 <= change <= 2
        else:
            assert released.image == clean.image
            assert (row["sha256"], row["psnr_db"]) == (row["clean_sha256"], float("inf"))
    finite = [row["psnr_db"] for row in rows.values() if row["label"] in (2, 5, 7)]
    assert counts["psnr_db"] == pytest.approx(np.mean(finite))


def test_targets_stay_among_the_protected_classes(packed: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    """The release equals crafting towards the next protected class but one, and towards no other."""
    config, folder = copy(packed, tmp_path, method="sep", classes=("1", "2", "5", "8"), batch_size=100)
    protect.execute(config, folder, LOCAL)
    members = Ensemble(folder, choose(read_index(folder), config.protect.per_network)).members()
    shift = {1: 5, 2: 8, 5: 1, 8: 2}
    for shard in range(4):
        pairs = [pair for pair in both(folder)[20 * shard : 20 * shard + 20] if pair[0].label in shift]
        clean, labels = to_tensors([before for before, _ in pairs])
        stored, _ = to_tensors([after for _, after in pairs])
        for wanted, equal in ((torch.tensor([shift[y] for y in labels.tolist()]), True), ((labels + 5) % 10, False)):
            assert torch.equal(craft(members, clean, wanted, config.protect, torch.Generator(), 100), stored) is equal


def test_every_kind_of_target_gives_other_images(packed: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    found = {}
    for kind in ("shift", "random-class", "per-sample", "untargeted"):
        config, folder = copy(packed, tmp_path / kind, targets=kind)
        manifest = protect.execute(config, folder, LOCAL)
        assert manifest.counts["targets"] == kind
        assert manifest.counts["protected"] == 80
        found[kind] = digests(manifest)
    for shards in zip(*found.values(), strict=True):
        assert len(set(shards)) == 4


def test_a_shard_without_protected_images_is_released_whole(packed: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    shards = {s.name: {x.label for x in read_shard(packed[1].child("pack"), s)} for s in Manifest.load(packed[1], "pack").shards["train"]}
    name, absent = next((name, absent) for name, labels in shards.items() for absent in set(range(10)) - labels)
    config, folder = copy(packed, tmp_path, classes=(str(absent),), targets="untargeted", method="sep-fa-vr")
    counts = protect.execute(config, folder, LOCAL).counts
    assert (counts["images"], counts["protected"], counts["classes"]) == (80, 8, [absent])
    before, after = ({s.name: s.sha256 for s in Manifest.load(folder, stage).shards["train"]} for stage in ("pack", "protect"))
    assert before[name] == after[name]
    assert {clean.label for clean, released in both(folder) if clean.image != released.image} == {absent}


def test_the_epochs_asked_for_are_the_ensemble(packed: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = copy(packed, tmp_path / "ends", epochs=(0, 2))
    folder.write("surrogate/resnet8/epoch_0001/weights.pt", b"never read")
    manifest = protect.execute(config, folder, LOCAL)
    assert (manifest.counts["epochs"], manifest.counts["members"]) == ([0, 2], 2)
    config, folder = copy(packed, tmp_path / "other", epochs=(1, 2))
    other = protect.execute(config, folder, LOCAL)
    assert not set(digests(manifest)) & set(digests(other))
    config, folder = copy(packed, tmp_path / "spaced")  # two checkpoints out of three epochs: the first and the last
    assert digests(protect.execute(config, folder, LOCAL)) == digests(manifest)


def test_several_networks_make_one_ensemble_and_are_compared(packed: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = copy(packed, tmp_path)
    write_checkpoints(folder, ("resnet8", "vit-small"))
    counts = protect.execute(config, folder, LOCAL).counts
    assert (counts["networks"], counts["epochs"], counts["members"]) == (["resnet8", "vit-small"], [0, 2], 4)
    assert counts["gradients"] == 80 * config.protect.steps * 4
    said = json.loads(folder.read("protect/similarity.json"))
    assert [(entry["network"], entry["epochs"]) for entry in said["checkpoints"]] == [("resnet8", [0, 2]), ("vit-small", [0, 2])]
    assert said["networks"]["names"] == ["resnet8", "vit-small"]
    for entry in (*said["checkpoints"], said["networks"]):
        cosines = np.array(entry["cosines"])
        assert cosines.shape == (2, 2)
        np.testing.assert_allclose(cosines, cosines.T, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(cosines.diagonal(), 1, rtol=1e-5)
        assert -1 < cosines[0, 1] < 0.9


def test_checkpoints_are_compared_even_where_the_method_uses_one(packed: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = copy(packed, tmp_path, method="tap")
    protect.execute(config, folder, LOCAL)
    (entry,) = json.loads(folder.read("protect/similarity.json"))["checkpoints"]
    assert entry["epochs"] == [0, 1, 2]
    assert np.array(entry["cosines"]).shape == (3, 3)
    np.testing.assert_allclose(np.diag(entry["cosines"]), 1, rtol=1e-5)


def test_an_unknown_class_leaves_nothing(packed: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = copy(packed, tmp_path, classes=("0", "striped"))
    with pytest.raises(ValueError, match=r"protect\.classes: 'striped' is no class"):
        protect.execute(config, folder, LOCAL)
    assert not folder.exists("protect/started.json")


def test_how_visible_each_change_is_is_told_of_the_images_as_stored(packed: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = copy(packed, tmp_path, method="noise")
    protect.execute(config, folder, LOCAL)
    rows = {row["key"]: row for row in read_table(folder.child("protect"), SAMPLES).to_pylist()}
    for before, after in both(folder):
        clean, released = (torch.from_numpy(sample.pixels.copy()).permute(2, 0, 1)[None] for sample in (before, after))
        assert rows[after.key]["ssim"] == pytest.approx(float(ssim(released, clean)))
        assert rows[after.key]["changed_percent"] == pytest.approx(100 * (before.pixels != after.pixels).any(2).mean())
