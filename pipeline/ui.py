"""Open MLflow on the database of a run: `python pipeline/ui.py --run FOLDER`.

The server runs until Ctrl-C. A folder that was moved keeps its artifacts.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import sys
from collections.abc import Sequence

from pipeline.config.flags import call
from pipeline.storage.folder import Folder, absolute
from pipeline.storage.layout import DATABASE


def _serve(run: str, port: int = 5000) -> int:
    """Open MLflow on the database of a run.

    Args:
        run: folder of the run
        port: port of the server, which is reachable from this machine only
    """
    from pipeline.results.mlflow_address import HOST, runs_address
    from pipeline.tracking.own_database import follow, uri_of

    folder = Folder.open(absolute(run))
    if not folder.is_local or not folder.exists(DATABASE):
        raise ValueError(f"{folder.uri} holds no {DATABASE}: give a run that was tracked there; with --tracking-uri, open that server")
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HOST, port))
        except (OSError, OverflowError) as error:
            why = (getattr(error, "strerror", None) or str(error)).lower()
            raise ValueError(
                f"port {port} of {HOST} cannot be used ({why}): end what uses it, or give another: --port, or make ui PORT=..."
            ) from error
    try:
        follow(folder.path)
    except sqlite3.Error as error:
        raise ValueError(f"{folder.uri}/{DATABASE} is no database of MLflow ({error})") from error
    print(f"{runs_address(f'http://{HOST}:{port}')}   (the runs; + opens one; Ctrl-C ends)", flush=True)
    command = ["-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1", "--backend-store-uri", uri_of(folder.path)]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    os.chdir(folder.path)  # MLflow's own paths are relative to where it starts
    os.execve(sys.executable, [sys.executable, *command], {**os.environ, **quiet})  # noqa: S606


def main(arguments: Sequence[str] | None = None, program: str = "ui.py") -> int:
    """Serve, or return the exit code: 1 with one line that says what is wrong, 2 for wrong usage."""
    try:
        return call(_serve, program, arguments)
    except (ValueError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
