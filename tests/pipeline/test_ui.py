"""What `make ui` says where it cannot open a run."""

from __future__ import annotations

import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from pipeline import ui


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with a database that is not MLflow's, and a space in its name."""
    path = tmp_path / "my run"
    path.mkdir()
    with closing(sqlite3.connect(path / "mlflow.db")) as database:
        database.execute("CREATE TABLE other (x)")
    return path


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert ui.main(arguments) == 1
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert "Errno" not in printed.err
    return printed.err


def test_a_port_that_is_taken_is_named_with_what_to_do(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = said(capsys, "--run", str(run), "--port", str(port))
    assert f"port {port} of 127.0.0.1 cannot be used (address already in use): end what uses it, or give another: --port" in line
    assert "port 70000 of 127.0.0.1 cannot be used (bind(): port must be 0-65535" in said(capsys, "--run", str(run), "--port", "70000")


def test_what_holds_no_database_of_mlflow_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"{tmp_path} holds no mlflow.db: give a run that was tracked there" in said(capsys, "--run", str(tmp_path))
    assert f"{run}/mlflow.db is no database of MLflow" in said(capsys, "--run", str(run), "--port", "0")
