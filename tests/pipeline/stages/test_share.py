"""A share of each class is protected: exactly so many images, the same ones however they are packed, and the others as they were."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config.presets import preset
from pipeline.config.schema import ProtectConfig, RunConfig
from pipeline.operations.verification import verify
from pipeline.protection.choice import choose
from pipeline.results import findings as findings_module
from pipeline.results.run_results import RunResults
from pipeline.results.summary import headline
from pipeline.shards.shard import Sample, read_shard
from pipeline.shards.tables import read_table, rows_to_table, write_table
from pipeline.stages import addition, pack, protect
from pipeline.storage.folder import Folder
from pipeline.storage.layout import CHOSEN
from pipeline.storage.stage import Manifest
from tests.fixtures import finished_run
from tests.fixtures.executors import LOCAL
from tests.fixtures.packed_run import digests
from tests.fixtures.pictures import class_folders, encoded, picture, write


def changed(folder: Folder) -> tuple[set[str], dict[str, int]]:
    """The keys of the released images that differ from the clean ones, of which the others have the same bytes; and all labels."""
    clean, released = (samples(folder, stage) for stage in ("pack", "protect"))
    different = {key for key, sample in released.items() if sample.image != clean[key].image}
    assert released.keys() == clean.keys()
    return different, {key: sample.label for key, sample in clean.items()}


def samples(folder: Folder, stage: str) -> dict[str, Sample]:
    return {each.key: each for shard in Manifest.load(folder, stage).shards["train"] for each in read_shard(folder.child(stage), shard)}


@pytest.fixture
def sources(tmp_path: Path) -> RunConfig:
    """The configuration of a run of five, six and seven images in class folders."""
    class_folders(tmp_path / "data", {"ant": 5, "bee": 6, "cat": 7})
    base = preset("smoke")
    return replace(base, data=str(tmp_path / "data"), stages=("pack", "protect"), surrogate=replace(base.surrogate, batch_size=4))


def packed(config: RunConfig, run: Path, shard_images: int, **settings: object) -> tuple[RunConfig, Folder]:
    own = replace(config.protect, **settings)  # type: ignore[arg-type]
    config = replace(config, run=str(run), pack=replace(config.pack, shard_images=shard_images), protect=own)
    folder = Folder.open(config.run)
    pack.execute(config, folder, LOCAL)
    return config, folder


@pytest.mark.parametrize("method", ["noise", "error-min", "error-min-class"])
def test_half_of_each_class_is_the_same_half_however_many_shards_there_are(sources: RunConfig, tmp_path: Path, method: str) -> None:
    found, quick = [], {} if method == "noise" else {"noise_rounds": 2, "steps": 2}
    for shard_images in (4, 100):
        config, folder = packed(sources, tmp_path / str(shard_images), shard_images, method=method, share=0.5, **quick)
        counts = protect.execute(config, folder, LOCAL).counts
        different, labels = changed(folder)
        assert Counter(labels[key] for key in different) == {0: 3, 1: 3, 2: 4}
        assert (counts["protected"], counts["images"], counts["share"], counts["chosen"]) == (10, 18, 0.5, "random")
        assert verify(folder).faults == ()
        assert str(verify(folder)).startswith("10 protected images and 8 released as they are in ")
        found.append(different)
    assert found[0] == found[1]
    config, folder = packed(replace(sources, seed=1), tmp_path / "other", 4, method=method, share=0.5, **quick)
    protect.execute(config, folder, LOCAL)
    assert changed(folder)[0] != found[0]


def test_rules_by_features_take_opposite_ends_and_a_larger_share_keeps_the_smaller_one(tmp_path: Path) -> None:
    config, folder = finished_run.write(tmp_path / "run", ("pack", "surrogate"))
    taken: dict[tuple[str, float], set[str]] = {}
    for rule, share in (("near-mean", 0.3), ("near-mean", 0.5), ("far-mean", 0.5)):
        own = replace(config.protect, chosen=rule, share=share)  # type: ignore[arg-type]
        counts = protect.execute(replace(config, protect=own, overwrite=True), folder, LOCAL).counts
        assert (counts["chosen"], verify(folder).faults) == (rule, ())
        taken[rule, share], labels = changed(folder)
        assert Counter(labels[key] for key in taken[rule, share]) == {k: int(share * n + 0.5) for k, n in Counter(labels.values()).items()}
    assert taken["near-mean", 0.3] < taken["near-mean", 0.5]
    assert taken["near-mean", 0.5] | taken["far-mean", 0.5] == {*labels}
    configuration = RunResults.read(folder).configuration(config)["protect"]
    assert (configuration["share"], configuration["chosen"]) == (0.5, "far-mean")


def test_the_whole_share_is_the_release_as_it_was(tmp_path: Path) -> None:
    config, folder = finished_run.write(tmp_path / "run", ("pack", "surrogate"))
    first = protect.execute(config, folder, LOCAL)
    assert not {"share", "chosen"} & {*first.asked["protect"], *first.counts}
    assert not folder.child("protect").exists(CHOSEN)
    whole = replace(config, protect=replace(config.protect, share=1.0, chosen="far-mean"))
    assert digests(protect.execute(whole, folder, LOCAL)) == digests(first)


def test_a_report_says_what_part_was_protected_and_shows_images_of_it(tmp_path: Path) -> None:
    config, folder = finished_run.write(tmp_path / "run", ("pack", "surrogate"))
    protect.execute(replace(config, protect=replace(config.protect, method="noise", share=0.5)), folder, LOCAL)
    results = RunResults.read(folder)
    (said,) = findings_module._on_share(results)
    assert said.startswith("Only 50 % of the images of each protected class were changed (random)")
    assert headline(results)["protected_share"] == 0.5
    places = results.samples.shown(results.count("protect", "classes"))
    assert {place.key for place in places} <= changed(folder)[0]


def test_a_record_of_other_images_is_a_fault(sources: RunConfig, tmp_path: Path) -> None:
    config, folder = packed(sources, tmp_path / "run", 4, method="noise", share=0.5)
    protect.execute(config, folder, LOCAL)
    table = read_table(folder.child("protect"), CHOSEN)
    keys = [row["key"] for row in table.to_pylist()]
    write_table(folder.child("protect"), CHOSEN, rows_to_table([{"key": key} for key in keys[1:]], table.schema))
    faults = verify(folder).faults
    assert f"protect/{CHOSEN}: not as recorded in manifest.json" in faults
    assert any(f"protect/{CHOSEN}: " in fault and "expected" in fault for fault in faults)
    assert any(keys[0] in fault for fault in faults)


def test_images_that_come_later_are_protected_to_the_same_share(sources: RunConfig, tmp_path: Path) -> None:
    config, folder = packed(sources, tmp_path / "run", 4, method="error-min-class", noise_rounds=2, share=0.5)
    protect.execute(config, folder, LOCAL)
    for number in range(4):
        write(tmp_path / "data" / "bee" / f"late{number}.png", encoded(picture(7 + number, 8, 8)))
    addition.execute(replace(config, add=config.data), folder, LOCAL)
    added = Folder.open(f"{config.run}/added/0001")
    assert len(changed(added)[0]) == 2
    assert verify(added, Manifest.load(folder, "protect")).faults == ()


def test_ties_are_chosen_by_key_and_seed_alone() -> None:
    labels = {f"{number:03d}": number % 3 for number in range(30)}
    assert choose(labels, 0.5, {}, 0) == choose(dict(reversed(labels.items())), 0.5, {}, 0)
    assert choose(labels, 0.5, {}, 0) != choose(labels, 0.5, {}, 1)
    assert choose(labels, 0.1, {"029": -1.0, "027": -2.0, "025": -3.0}, 0) == ["025", "027", "029"]


@pytest.mark.parametrize("share", [0, 1.2, -0.5])
def test_a_share_of_nothing_or_more_than_all_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=rf"protect\.share must be above 0 and at most 1, got {share}"):
        ProtectConfig(share=share)


def test_rules_by_features_need_a_surrogate() -> None:
    with pytest.raises(ValueError, match=r"protect\.chosen = far-mean needs a surrogate's features, and error-min has none: take random"):
        ProtectConfig(method="error-min", share=0.5, chosen="far-mean")
