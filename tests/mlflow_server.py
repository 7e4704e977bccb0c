"""MLflow's server on the database of a run, as `make ui` starts it: a process group of its own, ended as one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

READY_SECONDS = 120
QUIET = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"}


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


@contextmanager
def served(database: Path) -> Iterator[str]:
    """The address of a server on that SQLite database, which lives as long as this.

    Raises:
        RuntimeError: it ended, or did not answer in time.
    """
    port = _free_port()
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{database}"]
    with (database.parent / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, **QUIET},
            cwd=database.parent,
        )
        try:
            _wait(server, f"http://127.0.0.1:{port}")
            yield f"http://127.0.0.1:{port}"
        finally:
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(server.pid, number)
                    server.wait(20)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    continue


def _wait(server: subprocess.Popen[bytes], address: str) -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with {server.returncode}")
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"the server did not answer within {READY_SECONDS} s")
