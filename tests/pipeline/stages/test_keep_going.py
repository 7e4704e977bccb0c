"""Poison work: a shard that always fails. It fails the stage after all others are finished; with keep-going, it is left out by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.work import Chain, WorkFailed
from pipeline.config.schema import RunConfig
from pipeline.operations.image_folder import export
from pipeline.operations.verification import verify
from pipeline.protection import crafting, release
from pipeline.shards.tables import read_table
from pipeline.stages import protect
from pipeline.storage.folder import Folder
from pipeline.storage.layout import SAMPLES
from pipeline.storage.stage import Shard
from tests.fixtures.executors import LOCAL
from tests.fixtures.packed_run import copy

pytestmark = pytest.mark.faults
POISON = "train-000001.tar"


def poisoned(task: crafting.CraftingTask, shard: Shard, clean: release.Clean) -> release.Crafted:
    """Fail to craft one shard, every time."""
    if shard.name == POISON:
        raise ValueError("no luck")
    return release.craft_chosen(task, shard, clean)


def test_keeping_going_leaves_a_usable_rest_and_what_is_missing_by_name(
    packed: tuple[RunConfig, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = copy(packed, tmp_path / "whole", method="sep-fa")
    whole = protect.execute(config, folder, LOCAL)
    config, folder = copy(packed, tmp_path / "poisoned", method="sep-fa")
    with monkeypatch.context() as patch:
        patch.setattr(protect, "PROTECT", Chain(release.read_clean, poisoned, release.release))
        with pytest.raises(WorkFailed, match=rf"protect: 1 failed; the others are finished and saved \({POISON}: ValueError: no luck"):
            protect.execute(config, folder, LOCAL)
        assert not folder.exists("protect/manifest.json")
        config = replace(config, keep_going=True)
        partial = protect.execute(config, folder, LOCAL)
        assert protect.execute(config, folder, LOCAL).digest == partial.digest  # tried again, and failed again
    assert partial.missing == [POISON]
    assert (partial.counts["images"], partial.counts["protected"]) == (60, 60)
    assert {shard.name: shard for shard in whole.shards["train"] if shard.name != POISON} == {s.name: s for s in partial.shards["train"]}
    assert read_table(folder.child("protect"), SAMPLES).num_rows == 60
    audit = verify(folder)
    assert audit.faults == (f"protect/{POISON}: missing: crafting it failed, and the run continued without it",)

    manifest = folder.read("protect/manifest.json")
    folder.write("protect/manifest.json", manifest.replace(b'"protected": 60', b'"protected": 61'))
    assert verify(folder).faults[-1] == "protect/manifest.json: 61 protected images recorded, but 60 clean ones were to be"
    folder.write("protect/manifest.json", manifest)
    assert len(export(folder, Folder.open(str(tmp_path / "exported"))).files) == 60

    mended = protect.execute(replace(config, keep_going=False), folder, LOCAL)
    assert (mended.missing, mended.counts, mended.shards) == ([], whole.counts, whole.shards)
    assert verify(folder).faults == ()


def test_class_means_without_a_shard_that_cannot_be_read_are_those_of_the_rest(packed: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = copy(packed, tmp_path / "undisturbed", method="sep-fa")
    undisturbed = protect.execute(config, folder, LOCAL)
    config, folder = copy(packed, tmp_path / "run", method="sep-fa")
    whole = folder.read(f"pack/{POISON}")
    folder.child("pack").write(POISON, b"lost")
    with pytest.raises(WorkFailed, match=f"class means: 1 failed.*{POISON}"):
        protect.execute(config, folder, LOCAL)
    partial = protect.execute(replace(config, keep_going=True), folder, LOCAL)
    assert partial.missing == [POISON]
    assert len(partial.shards["train"]) == 3
    folder.child("pack").write(POISON, whole)
    mended = protect.execute(config, folder, LOCAL)
    assert (mended.missing, mended.shards) == ([], undisturbed.shards)  # other shards are crafted again, towards the means of all images
