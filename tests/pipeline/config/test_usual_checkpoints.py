"""The default number of checkpoints, as recorded by the protect stage and, for a sweep's own run, in MLflow."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config.schema import RunConfig
from pipeline.results.run_results import RunResults
from pipeline.stages import protect
from pipeline.storage.folder import Folder
from pipeline.tracking.tracker import MlflowTracker
from sep.methods.registry import Method
from tests.fixtures import finished_run
from tests.fixtures.executors import LOCAL


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunConfig, Folder]:
    """A run with a surrogate that asks for no number, and no cluster to craft on."""

    def refuse(workers: int | None) -> None:
        raise ValueError("no cluster")

    monkeypatch.setattr(type(LOCAL), "connect", staticmethod(refuse))
    config, folder = finished_run.write(tmp_path / "run", ("pack", "surrogate"))
    surrogate = replace(config.surrogate, epochs=30)  # claimed, not trained
    return replace(config, surrogate=surrogate, protect=replace(config.protect, checkpoints=None)), folder


@pytest.mark.parametrize(("method", "recorded"), [("sep", 30), ("sep-fa", 30), ("sep-fa-vr", 15), ("tap", 15)])
def test_the_stage_records_a_number_and_takes_it_for_the_same(trained: tuple[RunConfig, Folder], method: Method, recorded: int) -> None:
    config, folder = trained
    for checkpoints in (None, recorded):
        asked = replace(config, protect=replace(config.protect, method=method, checkpoints=checkpoints))
        with pytest.raises(ValueError, match="no cluster"):
            protect.execute(asked, folder, LOCAL)
        assert json.loads(folder.read("protect/started.json"))["protect"]["checkpoints"] == recorded
    other = replace(config, protect=replace(config.protect, method=method, checkpoints=recorded - 1))
    with pytest.raises(ValueError, match=f"protect.checkpoints: {recorded} -> {recorded - 1}"):
        protect.execute(other, folder, LOCAL)


def test_a_sweep_over_methods_has_numbers_in_its_points(trained: tuple[RunConfig, Folder]) -> None:
    config, folder = trained
    config = replace(config, sweep=("protect.method=sep,sep-fa-vr",))
    nothing = RunResults(folder)
    follows = {"protect.members_per_step", "protect.momentum", "protect.normalised", "protect.channels", "protect.patterns"}
    assert MlflowTracker(config, folder)._of_points(nothing) == {"protect.method", "protect.checkpoints", *follows}
    given = replace(config, protect=replace(config.protect, checkpoints=4))
    assert MlflowTracker(given, folder)._of_points(nothing) == {"protect.method", *follows}
