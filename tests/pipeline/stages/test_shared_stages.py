"""Stages of a start: those that the method needs, and for a sweep, those that any of its points needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import session
from cluster.executor import Executor
from pipeline.config.presets import from_tree
from pipeline.config.schema import RunConfig, StageName
from pipeline.stages import job, report, sequence
from pipeline.storage.run import Run
from pipeline.storage.stage import Manifest
from tests.fixtures.executors import LOCAL


@pytest.fixture
def began(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that are run, replaced by ones that do nothing: `pack`, `steps-1/protect`, ..."""
    seen: list[str] = []

    def pretended(name: StageName) -> Callable[[RunConfig, Run, Executor], Manifest]:
        def pretend(config: RunConfig, folder: Run, executor: Executor) -> Manifest:
            seen.append(f"{folder.path.rpartition('sweep/')[2]}/{name}" if "/sweep/" in folder.path else name)
            return Manifest(stage=name, asked={}, hash="", counts={})

        return pretend

    for name in sequence.RUN:
        monkeypatch.setitem(sequence.RUN, name, pretended(name))
    monkeypatch.setattr(report, "write", lambda config, results: pretended("report")(config, results.folder, LOCAL))
    monkeypatch.setattr(sequence, "check", lambda config, folder, results: None)  # there are no images
    monkeypatch.setattr(session, "close", lambda: None)
    return seen


def asked(path: Path, method: str, *sweep: str) -> RunConfig:
    return from_tree({"preset": "smoke", "run": str(path / "run"), "protect": {"method": method}, "sweep": sweep})


@pytest.mark.parametrize(("base", "other"), [("linear-separable", "sep-fa"), ("sep-fa", "linear-separable")])
def test_a_sweep_has_a_surrogate_if_any_point_needs_one(tmp_path: Path, began: list[str], base: str, other: str) -> None:
    _, faults = job.run(asked(tmp_path, base, f"protect.method={base},{other}"))
    assert not faults
    points = [f"method-{method}/{stage}" for method in (base, other) for stage in ("protect", "victim", "report")]
    assert began == ["pack", "surrogate", *points]


def test_a_sweep_has_none_if_no_point_needs_one(tmp_path: Path, began: list[str]) -> None:
    job.run(asked(tmp_path, "sep-fa", "protect.method=linear-separable"))
    assert began == ["pack", *(f"method-linear-separable/{stage}" for stage in ("protect", "victim", "report"))]


def test_a_run_that_is_no_sweep_has_what_its_method_needs(tmp_path: Path, began: list[str]) -> None:
    job.run(asked(tmp_path, "linear-separable"))
    assert began == ["pack", "protect", "victim", "report"]
