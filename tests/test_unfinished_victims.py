"""A matrix of which some trainings failed: a report shows the others and names those, and nothing counts as finished."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster import session, sweep
from cluster.pool import WorkFailed
from cluster.session import Resources
from pipeline import report, results, victim
from pipeline.config import RunConfig
from pipeline.results import UNFINISHED
from pipeline.storage import Folder
from tests import finished_run


class Trainings:
    """Trials in this process, of which some fail."""

    def __init__(self) -> None:
        self.broken: set[str] = set()

    def __call__(self, function: Any, cells: Mapping[str, Any], *, what: str, **_: Any) -> None:
        for name in cells.keys() - self.broken:
            function(cells[name], lambda result: None)
        if failed := cells.keys() & self.broken:
            raise WorkFailed(what, dict.fromkeys(failed, "ValueError: no luck"))


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Trainings]:
    """In the place of those on a cluster."""
    threads, made = torch.get_num_threads(), Trainings()
    monkeypatch.setattr(sweep, "sweep", made)
    monkeypatch.setattr(session, "connect", lambda workers: Resources(nodes=((1, 0),), workers=1, tasks=1))
    yield made
    torch.set_num_threads(threads)


@pytest.fixture
def protected(tmp_path: Path) -> tuple[RunConfig, Folder]:
    """A run that is protected and asks for victims of two seeds."""
    config, folder = finished_run.write(tmp_path / "run", ("pack", "surrogate", "protect"))
    return replace(config, victim=replace(config.victim, epochs=1)), folder


def said(folder: Folder) -> str:
    """The words of the page."""
    return re.sub(r"\s+", " ", folder.read("report/index.html").decode())


def test_what_is_there_is_shown_beside_the_names_of_what_is_not(protected: tuple[RunConfig, Folder], trainings: Trainings) -> None:
    config, folder = protected
    trainings.broken = {"resnet8-protected-none-seed1"}
    with pytest.raises(WorkFailed, match="no luck"):
        victim.run(config, folder)
    found = results.finished(folder)
    assert "victim" not in found
    assert results.trials(folder, found) == []
    there = results.trained(folder, found)
    assert {(row["data"], row["seed"]) for row in there.rows} == {("clean", 0), ("clean", 1), ("protected", 0)}
    first = report.run(config, folder)
    assert "The victims are not finished: 1 of 4 trainings failed, and are missing here: resnet8-protected-none-seed1." in said(folder)
    assert "accuracy" in first.counts["pictures"]
    known = results.headline(folder)
    (row,) = (row for row in there.rows if row["data"] == "protected")
    assert (known["protected_accuracy"], known["seeds"]) == (row["last_accuracy"], 1)
    assert re.search(r"missing victims +1 +of 4 trainings", report.summary(config, folder))
    assert report.run(config, folder) == first

    trainings.broken = set()
    victim.run(config, folder)
    assert not folder.exists(f"victim/{UNFINISHED}")
    assert report.run(config, folder) != first
    assert "not finished" not in said(folder)
    assert "missing victims" not in report.summary(config, folder)
    assert results.headline(folder)["seeds"] == 2


def test_clean_victims_alone_say_nothing_but_that_others_failed(protected: tuple[RunConfig, Folder], trainings: Trainings) -> None:
    config, folder = protected
    trainings.broken = {f"resnet8-protected-none-seed{seed}" for seed in (0, 1)}
    with pytest.raises(WorkFailed, match="no luck"):
        victim.run(config, folder)
    report.run(config, folder)
    assert "No victim is finished yet on both clean and protected images" in said(folder)
    assert "2 of 4 trainings failed" in said(folder)


def test_what_is_there_of_an_earlier_protection_is_not_shown(protected: tuple[RunConfig, Folder], trainings: Trainings) -> None:
    config, folder = protected
    trainings.broken = {"resnet8-clean-none-seed1"}
    with pytest.raises(WorkFailed, match="no luck"):
        victim.run(config, folder)
    assert results.trained(folder, results.finished(folder)).rows
    finished_run.write(Path(folder.path), ("protect",), replace(config, protect=replace(config.protect, steps=2), overwrite=True))
    assert results.trained(folder, results.finished(folder)) == results.Trained([], [])
    report.run(config, folder)
    assert "trainings failed" not in said(folder)
