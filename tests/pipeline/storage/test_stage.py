from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.storage import stage as stage_module
from pipeline.storage.folder import Folder
from pipeline.storage.layout import MANIFEST
from pipeline.storage.records import digest, flatten
from pipeline.storage.stage import VERSION, Manifest, Shard, Stage, read_started

SECTION = {"size": 32, "deep": {"shard_images": 250}}
SHARDS = {"train": [Shard("train-000000.tar", "ab" * 32, 3)]}


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    return Folder.open(str(tmp_path / "run"))


def start(run: Folder, name: str = "pack", section: dict[str, Any] = SECTION, seed: int = 0, **options: Any) -> Stage:
    return Stage(run, name, section, seed=seed, **options)


def test_a_finished_stage_is_known_as_done(run: Folder) -> None:
    stage = start(run)
    assert stage.manifest is None
    written = stage.finish({"train": 3}, SHARDS)
    again = start(run).manifest
    assert again is not None
    assert again == written == Manifest.load(run, "pack")
    assert again.shards == SHARDS
    assert again.hash == digest(again.asked) == stage.hash
    assert {"torch", "ray", "webdataset"} <= again.versions.keys()


def test_an_unfinished_stage_goes_on_with_what_is_there(run: Folder) -> None:
    start(run).folder.write("train-000000.tar", b"finished before")
    half = Path(run.path, "pack", ".partial-train-000001.tar")
    half.write_bytes(b"half")
    stage = start(run)
    assert stage.manifest is None
    assert stage.folder.read("train-000000.tar") == b"finished before"
    assert not half.exists()
    with pytest.raises(ValueError, match="'pack' has not finished"):
        Manifest.load(run, "pack")


@pytest.mark.parametrize("finished", [True, False])
def test_a_changed_field_is_named_with_both_values(run: Folder, finished: bool) -> None:
    stage = start(run)
    stage.folder.write("train-000000.tar", b"made with 250")
    if finished:
        stage.finish({})
    changed = {"size": 32, "deep": {"shard_images": 100}}
    with pytest.raises(ValueError, match=r"pack\.deep\.shard_images: 250 -> 100.*--overwrite") as refused:
        start(run, section=changed)
    assert "size" not in str(refused.value)
    with pytest.raises(ValueError, match="seed: 0 -> 1"):
        start(run, seed=1)
    with pytest.raises(ValueError, match=r"pack\.new: None -> 5"):
        start(run, section={**SECTION, "new": 5})
    assert run.read("pack/train-000000.tar") == b"made with 250"  # a refusal changes no file
    assert (start(run).manifest is not None) is finished


def test_overwrite_clears_what_was_made_otherwise_and_keeps_what_was_not(run: Folder) -> None:
    stage = start(run)
    stage.folder.write("train-000000.tar", b"made with 32")
    stage.finish({})
    kept = start(run, overwrite=True)
    assert kept.manifest is not None
    assert kept.folder.exists("train-000000.tar")
    fresh = start(run, section={**SECTION, "size": 64}, overwrite=True)
    assert fresh.manifest is None
    assert fresh.folder.names() == ["started.json"]
    fresh.finish({})
    assert start(run, section={**SECTION, "size": 64}).manifest is not None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 2}', b'{"version": 2, "shards": {"train": [{}]}}', b"\xff\xfe"])
def test_a_damaged_manifest_is_named_with_what_to_do(run: Folder, content: bytes) -> None:
    start(run).finish({})
    run.child("pack").write(MANIFEST, content)
    with pytest.raises(ValueError, match=r"pack/manifest\.json is damaged"):
        Manifest.load(run, "pack")
    with pytest.raises(ValueError, match=r"pack/manifest\.json is damaged"):
        start(run)


@pytest.mark.parametrize("damaged", ["started.json", MANIFEST])
def test_overwrite_redoes_a_stage_whose_records_are_damaged(run: Folder, damaged: str) -> None:
    """The message about a damaged manifest says so."""
    start(run).finish({})
    run.child("pack").write(damaged, b"{")
    with pytest.raises(ValueError, match="damaged"):
        start(run)
    assert start(run, overwrite=True).manifest is None


@pytest.mark.parametrize("damaged", [None, "started.json", MANIFEST])
def test_pieces_that_know_what_they_were_made_from_are_never_cleared(run: Folder, damaged: str | None) -> None:
    stage = start(run, "victim", pieces_know=True)
    stage.folder.write("piece.json", b"whole")
    stage.finish({})
    if damaged:
        stage.folder.write(damaged, b"{")
    changed = SECTION if damaged else {**SECTION, "size": 64}
    with pytest.raises(ValueError, match="--overwrite") as refused:
        start(run, "victim", changed, pieces_know=True)
    assert ("what is finished and still fits stays" in str(refused.value)) == (damaged is None)
    again = start(run, "victim", changed, pieces_know=True, overwrite=True)
    assert again.manifest is None
    assert again.folder.names() == ["piece.json", "started.json"]


def test_a_manifest_of_another_version_is_refused_with_what_to_do(run: Folder) -> None:
    start(run).finish({})
    content = json.loads(run.read("pack/manifest.json"))
    assert content["version"] == VERSION
    for version, came in ((1, "1"), (99, "99"), (None, "none")):
        run.write("pack/manifest.json", json.dumps({**content, "version": version}).encode())
        refused = rf"pack/manifest\.json: expected version {VERSION}, found {came}: .*--overwrite.* or give another --run$"
        with pytest.raises(ValueError, match=refused):
            Manifest.load(run, "pack")
        with pytest.raises(ValueError, match=refused):
            start(run, "protect", {}, inputs=("pack",))
    del content["version"]
    run.write("pack/manifest.json", json.dumps(content).encode())
    with pytest.raises(ValueError, match="found none"):
        Manifest.load(run, "pack")
    assert start(run, overwrite=True).manifest is None


@pytest.mark.parametrize("finished", [True, False])
def test_a_stage_that_another_version_began_is_refused_and_redone_with_overwrite(run: Folder, finished: bool) -> None:
    stage = start(run)
    stage.folder.write("train-000000.tar", b"of an early version")
    if finished:
        stage.finish({})
    asked = json.loads(run.read("pack/started.json"))
    assert asked.pop("version") == VERSION
    assert read_started(run, "pack") == asked == stage.asked
    run.write("pack/started.json", json.dumps(asked).encode())
    with pytest.raises(ValueError, match=rf"pack/started\.json: expected version {VERSION}, found none: "):
        start(run)
    with pytest.raises(ValueError, match="expected version"):
        read_started(run, "pack")
    assert run.read("pack/train-000000.tar") == b"of an early version"
    assert start(run, overwrite=True).folder.names() == ["started.json"]


def test_packages_that_are_not_installed_are_left_out(run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_module, "PACKAGES", ("torch", "no-such-package"))
    assert start(run).finish({}).versions.keys() == {"torch"}


def test_inputs_are_chained_by_digest(run: Folder) -> None:
    start(run).finish({"train": 3}, SHARDS)
    protect = start(run, "protect", {"steps": 3}, inputs=("pack",))
    assert protect.asked["inputs"] == {"pack": Manifest.load(run, "pack").digest}
    protect.finish({})
    assert start(run, "protect", {"steps": 3}, inputs=("pack",)).manifest is not None
    redone = start(run, section={**SECTION, "size": 64}, overwrite=True)
    redone.finish({"train": 4}, SHARDS)
    with pytest.raises(ValueError, match=r"stage 'protect'.*inputs\.pack: "):
        start(run, "protect", {"steps": 3}, inputs=("pack",))


def test_an_input_that_has_not_finished_is_named(run: Folder) -> None:
    with pytest.raises(ValueError, match="stage 'pack' has not finished"):
        start(run, "protect", {}, inputs=("pack",))
    assert not run.exists("protect")


def test_digest_says_what_came_out_and_not_how_long_it_took(run: Folder) -> None:
    manifest = start(run).finish({"train": 3}, SHARDS)
    content = json.loads(run.read("pack/manifest.json"))
    run.write("pack/manifest.json", json.dumps({**content, "timing": {"seconds": 99.0}}).encode())
    assert Manifest.load(run, "pack").digest == manifest.digest
    run.write("pack/manifest.json", json.dumps({**content, "counts": {"train": 4}}).encode())
    assert Manifest.load(run, "pack").digest != manifest.digest


def test_names_of_fields_are_those_of_the_command_line() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": [1, 2], "e": None}) == {"a.b.c": 1, "d": [1, 2], "e": None}


def test_a_clearing_cut_short_is_gone_on_with(run: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A half-cleared stage must never pass for a finished one, of the new configuration or the old."""
    stage = start(run)
    stage.folder.write("train-000000.tar", b"of the earlier configuration")
    stage.finish({})
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "names", interrupted)
        with pytest.raises(KeyboardInterrupt):
            start(run, section={**SECTION, "size": 64}, overwrite=True)
    assert run.exists("pack/train-000000.tar")
    for _ in range(2):
        assert start(run, section={**SECTION, "size": 64}).manifest is None
    assert not run.exists("pack/train-000000.tar")
    assert not run.exists(f"pack/{MANIFEST}")


def interrupted(folder: Folder, recursive: bool = False) -> list[str]:
    raise KeyboardInterrupt


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_of_somebody_else_is_left_alone(run: Folder, overwrite: bool) -> None:
    run.write("pack/photos/only-copy.jpg", b"precious")
    with pytest.raises(ValueError, match="no stage has written, and is left alone: give another --run"):
        start(run, overwrite=overwrite)
    assert run.names(recursive=True) == ["pack/photos/only-copy.jpg"]


def test_a_manifest_of_another_configuration_than_the_folder_is_refused(run: Folder) -> None:
    start(run).finish({})
    other = run.child("elsewhere")
    start(other, section={**SECTION, "size": 64}).finish({})
    run.child("pack").write(MANIFEST, other.child("pack").read(MANIFEST))
    with pytest.raises(ValueError, match="another configuration"):
        start(run)
