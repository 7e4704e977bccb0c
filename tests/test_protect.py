"""Protect: the same bytes whatever the workers, the order or an interruption; altered inputs named; the budget in integers."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster.pool import WorkFailed
from cluster.session import Resources
from pipeline import pack, protect
from pipeline.config import RunConfig, preset
from pipeline.ensemble import INDEX, weights_digest
from pipeline.networks import build_network
from pipeline.shards import read_shard, read_table, sha256
from pipeline.stage import Manifest, Stage, to_json
from pipeline.storage import Folder
from sep.craft import Method

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, ray_2_cpus: Resources) -> tuple[RunConfig, Folder]:
    """A packed run with three checkpoints of networks that really differ."""
    config = replace(preset("smoke"), run=str(tmp_path_factory.mktemp("packed")))
    config = replace(config, surrogate=replace(config.surrogate, epochs=3))
    folder = Folder.open(config.run)
    manifest = pack.run(config, folder)
    stage = Stage(folder, "surrogate", {}, seed=0, inputs=("pack",))
    index = []
    for epoch in range(3):
        torch.manual_seed(epoch)
        stream = io.BytesIO()
        torch.save(build_network("resnet8", manifest).state_dict(), stream)
        file = f"epoch_{epoch:04d}/weights.pt"
        stage.folder.write(file, stream.getvalue())
        index.append({"epoch": epoch, "file": file, "sha256": sha256(stream.getvalue()), "metrics": {}})
    stage.folder.write(INDEX, to_json({"checkpoints": index}))
    stage.finish({"network": "resnet8", "weights_sha256": weights_digest(index)})
    return config, folder


def copy(packed: tuple[RunConfig, Folder], target: Path, **changes: object) -> tuple[RunConfig, Folder]:
    """The same inputs in a folder of its own, with another protect configuration."""
    config, source = packed
    folder = Folder.open(str(target))
    for name in source.names(recursive=True):
        if not name.startswith("protect/"):
            folder.write(name, source.read(name))
    return replace(config, run=str(target), protect=replace(config.protect, **changes)), folder  # type: ignore[arg-type]


def digests(manifest: Manifest) -> list[str]:
    return [shard.sha256 for shard in manifest.shards["train"]]


@pytest.mark.parametrize("method", ["sep", "sep-fa", "sep-fa-vr", "tap", "noise"])
def test_every_method_protects_within_the_budget(packed: tuple[RunConfig, Folder], tmp_path: Path, method: Method) -> None:
    config, folder = copy(packed, tmp_path, method=method, eps_levels=2, steps=3)
    manifest = protect.run(config, folder)
    rows = read_table(folder.child("protect"), protect.SAMPLES).to_pylist()
    assert len(rows) == 80
    assert manifest.counts["linf_levels"] == max(row["linf_levels"] for row in rows) == 2
    assert manifest.counts["gradients"] == 80 * config.protect.gradients_per_image
    assert len(manifest.counts["epochs"]) == config.protect.members
    clean = {s.key: s for shard in Manifest.load(folder, "pack").shards["train"] for s in read_shard(folder.child("pack"), shard)}
    for shard in manifest.shards["train"]:
        for sample in read_shard(folder.child("protect"), shard):
            before = clean.pop(sample.key)
            assert (sample.label, sample.info) == (before.label, before.info)
            assert abs(sample.pixels.astype(int) - before.pixels.astype(int)).max() <= 2
            assert (sample.pixels != before.pixels).any()
    assert not clean
    assert not folder.child("protect").child("parts").exists()


def test_same_bytes_with_one_worker_and_two(packed: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    results = []
    for workers in (1, 2):
        config, folder = copy(packed, tmp_path / str(workers), method="sep-fa-vr", inner_steps=3)
        results.append(digests(protect.run(replace(config, workers=workers), folder)))
    assert results[0] == results[1]
    assert len(set(results[0])) == 4


def test_interrupted_stage_goes_on_and_repeats_no_finished_shard(packed: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = copy(packed, tmp_path / "whole")
    whole = protect.run(config, folder)
    config, folder = copy(packed, tmp_path / "broken")
    broken, clean = Manifest.load(folder, "pack").shards["train"][2], folder.child("pack")
    data = clean.read(broken.name)
    clean.write(broken.name, data[:-600])
    with pytest.raises(WorkFailed, match=rf"{broken.name}.*altered or truncated"):
        protect.run(config, folder)
    assert not folder.exists("protect/manifest.json")

    clean.write(broken.name, data)
    if config.protect.aligns_features:  # the means need every shard, so nothing could be crafted before
        assert not [name for name in folder.child("protect").names() if name.endswith(".tar")]
    assert digests(protect.run(config, folder)) == digests(whole)


def test_finished_shards_are_not_crafted_again(packed: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = copy(packed, tmp_path, method="sep")
    shards, clean = Manifest.load(folder, "pack").shards["train"], folder.child("pack")
    lost = clean.read(shards[1].name)
    clean.write(shards[1].name, b"lost")
    with pytest.raises(WorkFailed, match="1 failed after every other was finished"):
        protect.run(config, folder)
    written = {
        name: Path(folder.child("protect").file(name)).stat().st_mtime_ns
        for name in folder.child("protect").names()
        if name.endswith(".tar")
    }
    assert set(written) == {shard.name for shard in shards} - {shards[1].name}
    clean.write(shards[1].name, lost)
    manifest = protect.run(config, folder)
    assert len(manifest.shards["train"]) == len(shards)
    for name, stamp in written.items():
        assert Path(folder.child("protect").file(name)).stat().st_mtime_ns == stamp, f"{name} was crafted twice"


def test_altered_checkpoint_is_named(packed: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = copy(packed, tmp_path)
    file = "surrogate/epoch_0002/weights.pt"
    data = bytearray(folder.read(file))
    data[len(data) // 2] ^= 1
    folder.write(file, bytes(data))
    with pytest.raises(WorkFailed, match=r"epoch_0002/weights\.pt was altered"):
        protect.run(config, folder)


def test_changed_configuration_stops_by_name_and_overwrite_redoes(packed: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = copy(packed, tmp_path)
    first = protect.run(config, folder)
    assert protect.run(config, folder) == first
    other = replace(config, protect=replace(config.protect, eps_levels=1))
    with pytest.raises(ValueError, match=r"protect\.eps_levels: 8 -> 1"):
        protect.run(other, folder)
    redone = protect.run(replace(other, overwrite=True), folder)
    assert redone.counts["linf_levels"] == 1
    assert digests(redone) != digests(first)
