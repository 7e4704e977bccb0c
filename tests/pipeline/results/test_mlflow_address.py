"""Where to look at runs, in words that are true of every kind of tracker."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from pipeline.results.commands import PROJECT
from pipeline.results.mlflow_address import how_to_look, runs_path
from pipeline.tracking.parent_run import experiment_at


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://host:5000/", f"http://host:5000/{runs_path('7')}"),
        ("databricks", "the experiment /Shared/sep in the workspace of databricks"),
        ("databricks://profile", "the experiment /Shared/sep in the workspace of databricks://profile"),
    ],
)
def test_a_server_has_an_address_and_a_workspace_a_name(uri: str, expected: str) -> None:
    assert how_to_look(uri, "7", experiment_at(uri)) == expected


def test_commands_work_in_the_folder_where_they_are_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    own, _, _ = how_to_look("sqlite:////x", "1", "run", "/tmp/my run").partition(", then")
    assert shlex.split(own) == ["make", "-C", str(PROJECT), "ui", "RUN=/tmp/my run"]
    server, _, address = how_to_look("sqlite:////a b.db", "7", "sep").partition(", then ")
    assert shlex.split(server)[:4] == [sys.executable, "-m", "mlflow", "server"]
    assert shlex.split(server)[-1] == "sqlite:////a b.db"
    assert address.endswith(runs_path("7"))
