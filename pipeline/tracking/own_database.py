"""The database in the folder of a run, and the artifacts beside it: both stay with the run, however it is called and wherever it moves."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from pipeline.storage.layout import ARTIFACTS, DATABASE
from pipeline.tracking.mlflow_store import Store

EXPERIMENT = "1"  # its id: the only one in such a database but for MLflow's empty default, 0
LOCATIONS = {"experiments": "artifact_location", "runs": "artifact_uri", "logged_models": "artifact_location"}  # table -> column


def uri_of(folder: str) -> str:
    """Return the URI of the database in a local folder, whose name may hold any character.

    Where the name has to be quoted, the scheme names the driver: for plain `sqlite:///` MLflow makes a folder of the quoted name.
    """
    quoted = folder.replace("%", "%25").replace("?", "%3F")
    return f"{'sqlite' if quoted == folder else 'sqlite+pysqlite'}:///{quoted}/{DATABASE}"


def artifacts_of(folder: str) -> str:
    """Return the URI of the artifacts in a local folder."""
    return Path(folder, ARTIFACTS).as_uri()


def store_in(folder: str) -> Store:
    """Return the store in a local folder. Nothing is opened yet."""
    return Store(uri_of(folder), artifacts_of(folder))


def follow(folder: str) -> None:
    """Point the database to its artifacts where the folder was moved or copied; MLflow itself keeps absolute paths.

    Raises:
        sqlite3.Error: the database cannot be read or written, or is not MLflow's.
    """
    with closing(sqlite3.connect(Path(folder, DATABASE))) as database, database:
        found = database.execute("SELECT artifact_location FROM experiments WHERE experiment_id = ?", (EXPERIMENT,)).fetchone()
        now = artifacts_of(folder)
        if found is None or found[0] == now:
            return
        for table, column in LOCATIONS.items():
            moved = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"  # noqa: S608
            database.execute(moved, (now, len(found[0]) + 1, len(found[0]), found[0]))
