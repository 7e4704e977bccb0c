"""An ensemble of which few members are drawn at each step: as many networks in memory as are needed, and none loaded without need."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.config.schema import RunConfig
from pipeline.protection import checkpoints, crafting
from pipeline.protection.checkpoints import Checkpoint, Ensemble, choose, read_index
from pipeline.protection.class_means import SUM_SHARD
from pipeline.stages import protect
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Manifest
from sep.methods.request import protect as craft
from sep.models import Network, build
from sep.pictures import one_size
from tests.fixtures import finished_run
from tests.fixtures.executors import LOCAL

MEMBERS = 4
SIZE = sum(weights.nbytes for weights in build("resnet8", len(finished_run.CLASSES), finished_run.SIDE, [0.0] * 3, [1.0] * 3).parameters())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Folder]:
    return finished_run.write(tmp_path_factory.mktemp("run"), ("pack", "surrogate"))


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[int]]:
    """How often each epoch's network was loaded, in a worker that holds two of many."""
    gc.freeze()  # a network is loaded after a garbage collection, which takes a second with all that other tests have loaded
    found, load = Counter[int](), checkpoints._load

    def counted(ensemble: Ensemble, checkpoint: Checkpoint, trained: Manifest, pack: Manifest) -> Network:
        found[checkpoint.epoch] += 1
        return load(ensemble, checkpoint, trained, pack)

    monkeypatch.setattr(checkpoints, "_load", counted)
    monkeypatch.setattr(checkpoints, "HELD_BYTES", 2 * SIZE)
    checkpoints._networks.cache_clear()
    yield found
    checkpoints._networks.cache_clear()


def ensemble_of(folder: Folder, members_per_step: int | None) -> Ensemble:
    return Ensemble(folder, choose(read_index(folder), MEMBERS), members_per_step=members_per_step)


@pytest.mark.parametrize(("members_per_step", "held"), [(None, 4), (1, 2), (2, 2), (3, 3), (4, 4)])
def test_a_worker_holds_what_its_steps_need(
    written: tuple[RunConfig, Folder], loaded: Counter[int], members_per_step: int | None, held: int
) -> None:
    ensemble = ensemble_of(written[1], members_per_step)
    assert ensemble.held(SIZE) == held
    assert replace(ensemble, gpu=True).held(SIZE) == replace(ensemble, kernels="compiled").held(SIZE) == MEMBERS
    means = [torch.full((3, 64), float(number)) for number in range(MEMBERS)]
    members = ensemble.members(means)
    assert loaded == ({} if held < MEMBERS else dict.fromkeys(range(MEMBERS), 1))
    assert len(members) == MEMBERS
    for _ in range(3):  # whoever draws the same members again loads nothing
        drawn = [members[place] for place in range(held)]
    assert loaded.total() == max(held, MEMBERS if held == MEMBERS else 0)
    assert [float(member.means[0, 0]) for member in drawn if member.means is not None] == list(map(float, range(held)))
    whole = Ensemble(written[1], ensemble.checkpoints).members(means)
    for found, wanted in zip(members, whole, strict=True):
        assert torch.equal(found.network.head.weight, wanted.network.head.weight)


@pytest.mark.parametrize("members_per_step", [None, 1])
def test_an_ensemble_of_none_has_no_networks(written: tuple[RunConfig, Folder], loaded: Counter[int], members_per_step: int | None) -> None:
    """As of a method that follows no network."""
    assert not Ensemble(written[1], (), members_per_step=members_per_step).members()
    assert not loaded


def test_a_network_that_gives_way_leaves_memory(written: tuple[RunConfig, Folder], loaded: Counter[int]) -> None:
    members = ensemble_of(written[1], 1).members()
    first, second, *_ = [weakref.ref(members[place].network.trunk) for place in range(MEMBERS)]
    assert first() is None  # the second has just given way to the last, and goes with the next
    assert members[0] is not None
    assert second() is None


def test_class_means_are_the_same_where_few_networks_are_held(written: tuple[RunConfig, Folder], loaded: Counter[int]) -> None:
    pack = Manifest.load(written[1], "pack")
    sums = [SUM_SHARD(ensemble_of(written[1], drawn), 3, None, pack.shards["train"][0], 0)[0] for drawn in (None, 1)]
    assert all(torch.equal(a, b) for a, b in zip(*sums, strict=True))


@pytest.mark.parametrize("batch_size", [5, 100])
def test_each_step_loads_what_it_draws_once_for_all_images_of_a_shard(
    written: tuple[RunConfig, Folder], loaded: Counter[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    config, folder = finished_run.write(tmp_path / "run", ("pack", "surrogate"))
    section = replace(config.protect, method="sep-fa-drawn", checkpoints=MEMBERS, steps=7, batch_size=batch_size)
    config, each = replace(config, protect=section), []

    def counted(*arguments: object) -> torch.Tensor:
        before = loaded.total()
        protected = craft(*arguments)  # type: ignore[arg-type]
        each.append(loaded.total() - before)
        return one_size(protected)

    monkeypatch.setattr(crafting, "protect", counted)
    manifest = protect.execute(config, folder, LOCAL)
    assert len(each) == len(manifest.shards["train"])
    assert max(each) <= 7
    assert manifest.counts["gradients"] == 7 * manifest.counts["images"]
    assert manifest.asked["protect"]["members_per_step"] == 1
    assert (manifest.asked["protect"]["momentum"], manifest.asked["protect"]["normalised"]) == (0.9, True)

    few = [shard.sha256 for shard in manifest.shards["train"]]
    monkeypatch.setattr(checkpoints, "HELD_BYTES", MEMBERS * SIZE)
    checkpoints._networks.cache_clear()
    again = protect.execute(replace(config, protect=replace(section, steps=8, batch_size=4), overwrite=True), folder, LOCAL)
    assert [shard.sha256 for shard in again.shards["train"]] != few
    each.clear()
    again = protect.execute(replace(config, protect=replace(section, batch_size=4), overwrite=True), folder, LOCAL)
    assert [shard.sha256 for shard in again.shards["train"]] == few
    assert each == [0] * len(few)  # all fit, and were loaded before the first shard
