"""Trackers that fail in every way: the run goes on, one line says so, and the next start logs what is missing."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.schema import RunConfig
from pipeline.results.run_results import RunResults
from pipeline.storage.folder import Folder
from pipeline.tracking import outbox
from pipeline.tracking.tracker import MlflowTracker, open_tracker
from tests.fixtures import finished_run

AGAIN = "was not logged, the next start will try again"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed run with an empty database."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("runs") / "template"
    finished_run.write(path, ("pack", "surrogate"))
    MlflowClient(tracking_uri=f"sqlite:///{path}/mlflow.db")
    return path


@pytest.fixture
def packed(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunConfig, Folder]:
    """A copy of it, for a client that asks once."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    shutil.copytree(template, tmp_path / "run")
    return finished_run.configuration(tmp_path / "run"), Folder.open(str(tmp_path / "run"))


def track(config: RunConfig, folder: Folder) -> MlflowTracker:
    """Do everything that a run does to its tracker."""
    tracker = open_tracker(config, folder)
    assert isinstance(tracker, MlflowTracker)
    tracker.begin()
    watcher = tracker.watch("surrogate")
    assert watcher
    watcher.begun("resnet8")
    watcher.told("resnet8", {"epoch": 0, "loss": 1.0, "accuracy": 1.0, "lr": 1.0, "seconds": 1.0})
    for stage in ("pack", "surrogate"):
        tracker.log_stage(stage, RunResults.read(folder))
    tracker.close("FINISHED")
    return tracker


def logged(folder: Folder) -> set[str]:
    """Return the names of what the run's own database holds."""
    with contextlib.closing(sqlite3.connect(folder.file("mlflow.db"))) as database:
        return {name for (name,) in database.execute("SELECT name FROM runs WHERE lifecycle_stage = 'active' AND status = 'FINISHED'")}


@contextlib.contextmanager
def server(answer: bytes | None, status: int = 200) -> Iterator[str]:
    """The address of a server that gives one answer to everything; None is none at all, while the connection stays open."""

    class Handler(BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            if answer is None:
                over.wait()
                return
            super().handle_one_request()

        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer or b"")))
            self.end_headers()
            self.wfile.write(answer or b"")

        do_POST = do_GET

        def log_message(self, *arguments: Any) -> None: ...

    over, opened = threading.Event(), HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=opened.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{opened.server_port}"
    finally:
        over.set()
        opened.shutdown()


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b'{"error_code": "UNAUTHENTICATED", "message": "no"}', 401),
        (b"denied", 403),
        (b"oh", 500),
        (b"<html>hello</html>", 200),
        (b"{}", 200),
    ],
)
def test_a_server_that_refuses_or_is_none(answer: bytes, status: int, packed: Any, caplog: pytest.LogCaptureFixture) -> None:
    config, folder = packed
    with server(answer, status) as uri:
        track(replace(config, tracking_uri=uri), folder)
    assert AGAIN in caplog.text
    assert "Traceback" not in caplog.text


def test_a_server_that_went_away(packed: Any, caplog: pytest.LogCaptureFixture) -> None:
    config, folder = packed
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        track(replace(config, tracking_uri=f"http://127.0.0.1:{free.getsockname()[1]}"), folder)
    assert AGAIN in caplog.text


def test_a_server_that_never_answers_is_left_alone(packed: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    config, folder = packed
    monkeypatch.setattr(outbox, "SILENT_SECONDS", 0.3)
    monkeypatch.setattr(outbox, "PATIENCE_SECONDS", 0.1)
    with server(None) as uri:
        track(replace(config, tracking_uri=uri), folder)
    assert caplog.text.count(f"waiting for {uri}, up to 0.3 s without an answer") == 1
    assert caplog.text.count("the run goes on without it: the next start logs what is missing") == 1


def fill(folder: Folder, table: str, error: str) -> None:
    """Let the database refuse rows of a table, as SQLite does on a full disk."""
    with contextlib.closing(sqlite3.connect(folder.file("mlflow.db"))) as database, database:
        database.execute(f"CREATE TRIGGER full BEFORE INSERT ON {table} BEGIN SELECT RAISE(FAIL, '{error}'); END")


@pytest.mark.parametrize("table", ["experiments", "params", "metrics"])
def test_a_full_disk_and_then_room_again(table: str, packed: Any, caplog: pytest.LogCaptureFixture) -> None:
    config, folder = packed
    fill(folder, table, "database or disk is full")
    track(config, folder)
    assert AGAIN in caplog.text
    assert "database or disk is full" in caplog.text
    with contextlib.closing(sqlite3.connect(folder.file("mlflow.db"))) as database, database:
        database.execute("DROP TRIGGER full")
    caplog.clear()
    track(config, folder)
    assert "not logged" not in caplog.text
    assert logged(folder) == {"run", "surrogate"}


def test_artifacts_that_cannot_be_written(packed: Any, caplog: pytest.LogCaptureFixture) -> None:
    config, folder = packed
    Path(folder.file("mlflow")).write_text("no folder")
    track(config, folder)
    assert AGAIN in caplog.text
    Path(folder.file("mlflow")).unlink()
    track(config, folder)
    assert logged(folder) == {"run", "surrogate"}


def test_whatever_is_raised(packed: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RecursionError("too deep")

    config, folder = packed
    monkeypatch.setattr("pipeline.tracking.mlflow_store.Store.log_params", fail)
    track(config, folder)
    assert "too deep" in caplog.text


@pytest.mark.parametrize("name", ["a b", "a?b#c 50% off %41 é'\"&;$x"])
def test_the_database_is_in_the_run_whatever_it_is_called(name: str, template: Path, tmp_path: Path) -> None:
    from mlflow.tracking._tracking_service import utils

    path, moved = tmp_path / name, tmp_path / f"moved {name}"
    shutil.copytree(template, path)
    folder = Folder.open(str(path))
    track(finished_run.configuration(path), folder)
    assert logged(folder) == {name, "surrogate"}
    assert {entry.name for entry in tmp_path.iterdir()} == {name}
    shutil.move(path, moved)
    utils._artifact_repos_cache.clear()  # of this process; the next start of a run is another
    folder = Folder.open(str(moved))
    shutil.rmtree(folder.file("surrogate"))
    finished_run.write(moved, ("surrogate",), replace(finished_run.configuration(moved), overwrite=True))
    track(finished_run.configuration(moved), folder)
    assert logged(folder) == {name, "surrogate"}
    assert {entry.name for entry in tmp_path.iterdir()} == {f"moved {name}"}  # neither the database nor its artifacts are elsewhere
