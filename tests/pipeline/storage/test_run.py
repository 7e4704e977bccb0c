"""Folders of a point's stages: its own lie in its folder, the shared ones in the run that was swept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.storage.folder import Folder
from pipeline.storage.run import Point, begin, open_run, point, settings, sibling_points, sweep_of
from pipeline.storage.stage import Manifest, Stage


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    folder = Folder.open(str(tmp_path / "run"))
    Stage(folder, "pack", {}, seed=0).finish({"train": 3})
    return folder


def test_a_point_has_the_pack_and_surrogate_of_its_run_and_all_else_of_its_own(run: Folder) -> None:
    own = begin(run, "steps-5", {"protect.steps": 5})
    assert [own.child(name) == run.child(name) for name in ("pack", "surrogate", "protect", "victim", "report")] == 2 * [True] + 3 * [False]
    assert Manifest.load(own, "pack") == Manifest.load(run, "pack")
    Stage(own, "protect", {}, seed=0, inputs=("pack",)).finish({})
    assert run.child("sweep").child("steps-5").exists("protect/manifest.json")
    with pytest.raises(ValueError, match=r"'protect' has not finished in .*/run: "):
        Manifest.load(run, "protect")


def test_files_of_a_point_are_its_own_and_never_those_of_a_shared_stage(run: Folder) -> None:
    own = begin(run, "steps-5", {"protect.steps": 5})
    own.write("config.json", b"{}")
    assert own.read("config.json") == Path(own.file("config.json")).read_bytes() == b"{}"
    assert json.loads(own.read("point.json")) == {"protect.steps": 5}
    assert not run.exists("config.json")
    for name in ("pack/manifest.json", "surrogate/checkpoints.json"):
        with pytest.raises(AssertionError, match=r"reach it by child\(\)"):
            own.exists(name)


def test_a_point_is_opened_with_its_run(run: Folder, tmp_path: Path) -> None:
    own, other = begin(run, "steps-5", {"protect.steps": 5}), begin(run, "steps-6", {"protect.steps": 6})
    assert open_run(own.uri) == own == point(run, "steps-5") == Point(run.child("sweep").child("steps-5"), run)
    assert open_run(run.uri) == run
    assert (settings(own), sweep_of(own)) == ({"protect.steps": 5}, ["protect.steps=5"])
    assert (settings(run), sweep_of(run)) == ({}, [])
    assert sibling_points(own) == [run, other]
    assert sibling_points(run) == []
    alone = Folder.open(str(tmp_path / "alone" / "sweep" / "steps-5"))
    alone.write("point.json", b"{}")
    with pytest.raises(ValueError, match="reads the pack and surrogate of its run, which is not at"):
        open_run(alone.uri)
