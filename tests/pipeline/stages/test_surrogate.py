"""Surrogate: every epoch is saved and recorded, none is trained twice, and an interruption does not change the outcome."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.config.presets import preset
from pipeline.protection.checkpoints import Ensemble, choose, load_networks, read_index
from pipeline.stages import pack, surrogate
from pipeline.storage.folder import Folder
from pipeline.storage.records import digest, sha256, to_json
from tests.fixtures.executors import LOCAL


def test_keeps_every_epoch_and_goes_on_from_the_last(tmp_path: Path) -> None:
    config = replace(preset("smoke"), run=str(tmp_path / "run"))
    folder = Folder.open(config.run)
    pack.execute(config, folder, LOCAL)
    manifest = surrogate.execute(config, folder, LOCAL)
    index = json.loads(folder.read("surrogate/checkpoints.json"))["checkpoints"]
    assert [entry["epoch"] for entry in index] == [0, 1]
    assert manifest.counts["workers"] == 1
    for entry in index:
        assert sha256(folder.read(f"surrogate/{entry['file']}")) == entry["sha256"]
    index = read_index(folder)
    first, last = load_networks(Ensemble(folder, choose(index, 2)))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), last.parameters(), strict=True))
    assert load_networks(Ensemble(folder, choose(index, 1)))[0].head.weight.equal(last.head.weight)

    # The limit decides nothing but whether images stream, and a run of before, which did not record that, stays done.
    assert surrogate.execute(replace(config, memory_limit_mb=2001), folder, LOCAL) == manifest
    streaming = replace(config, memory_limit_mb=0)
    with pytest.raises(ValueError, match=r"surrogate\.beyond_memory_limit_mb: False -> True.*--overwrite"):
        surrogate.execute(streaming, folder, LOCAL)
    recorded = {name: folder.read(f"surrogate/{name}.json") for name in ("started", "manifest")}
    started, finished = (json.loads(content) for content in recorded.values())
    for asked in (started, finished["asked"]):
        del asked["surrogate"]["beyond_memory_limit_mb"]
    folder.write("surrogate/started.json", to_json(started))
    folder.write("surrogate/manifest.json", to_json({**finished, "hash": digest(finished["asked"])}))
    assert surrogate.execute(streaming, folder, LOCAL).counts == manifest.counts
    for name, content in recorded.items():
        folder.write(f"surrogate/{name}.json", content)

    # As after the death of the driver behind the last epoch: nothing is trained again, and the index is the same.
    Path(folder.file("surrogate/manifest.json")).unlink()
    Path(folder.file("surrogate/checkpoints.json")).unlink()
    stamps = {path: path.stat().st_mtime_ns for path in Path(config.run).rglob("weights.pt")}
    assert surrogate.execute(config, folder, LOCAL).counts == manifest.counts
    assert {path: path.stat().st_mtime_ns for path in Path(config.run).rglob("weights.pt")} == stamps


@pytest.mark.slow
def test_streams_what_does_not_fit_in_memory(tmp_path: Path) -> None:
    config = replace(preset("smoke"), run=str(tmp_path / "run"), memory_limit_mb=0, cache_gb=0)
    config = replace(config, surrogate=replace(config.surrogate, augmentation="resized-crop-flip"))
    folder = Folder.open(config.run)
    pack.execute(config, folder, LOCAL)
    counts = surrogate.execute(config, folder, LOCAL).counts
    assert counts["epochs"] == 2
    assert 0 < counts["final_loss"][0] < 5


@pytest.mark.slow
def test_several_networks_are_trained_one_after_the_other(tmp_path: Path) -> None:
    config = replace(preset("smoke"), run=str(tmp_path / "run"))
    config = replace(config, surrogate=replace(config.surrogate, networks=("resnet8", "vit-small")))
    folder = Folder.open(config.run)
    pack.execute(config, folder, LOCAL)
    manifest = surrogate.execute(config, folder, LOCAL)
    assert manifest.counts["networks"] == ["resnet8", "vit-small"]
    assert len(set(manifest.counts["parameters"])) == len(manifest.counts["final_loss"]) == 2
    index = read_index(folder)
    assert [(c.network, c.epoch) for c in choose(index, 1)] == [("resnet8", 1), ("vit-small", 1)]
    assert [(c.network, c.epoch) for c in choose(index, 5, epochs=(0,))] == [("resnet8", 0), ("vit-small", 0)]
    images = torch.zeros(1, 3, 32, 32)
    features = [network(images)[0] for network in load_networks(Ensemble(folder, choose(index, 2)))]
    assert [f.shape[1] for f in features] == [64, 64, 192, 192]
