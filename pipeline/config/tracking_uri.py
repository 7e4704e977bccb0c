"""The tracking URIs that are refused before anything starts: those with a password, and those at which there can be no tracker."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

SECRET = re.compile("pass|pwd|secret|token|key|cred|auth", re.IGNORECASE)  # in the name of a parameter
DRIVERS = {"postgresql": "psycopg2", "mysql": "MySQLdb", "mssql": "pyodbc"}  # what SQLAlchemy loads for a database, unless another is named
BEGINNING = b"SQLite format 3\0"
EXPECTED = "expected http://host:port, sqlite:////absolute/path.db, another database's URI, or none"


def refuse_password(uri: str) -> None:
    """Refuse a tracking URI with a password. Such a URI is written into the run's configuration; a user's name in it is allowed.

    Raises:
        ValueError: it has a password or the like, which the message does not repeat.
    """
    parts = urlsplit(uri)
    if parts.password or any(SECRET.search(name) for name, _ in parse_qsl(parts.query, keep_blank_values=True)):
        raise ValueError(
            "a tracking URI must not carry a password, because it is written down in the run: for a server set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment; put a server before a database that needs one"
        )


def check_tracking_uri(uri: str) -> None:
    """Refuse a tracking URI that no tracker can use. Whether one answers there, only a connection shows.

    Raises:
        ValueError: it has no host, too few slashes, a scheme that MLflow cannot track with, a driver that is not installed, or a place
            where no SQLite database can be.
    """
    if uri in ("none", "databricks"):
        return
    scheme, _, rest = uri.partition(":")
    kind, _, driver = scheme.partition("+")
    if kind == "sqlite" and rest.startswith("///") and rest != "///" and ":memory:" not in rest:
        file = sqlite_file(uri)
        assert file
        _check_file(uri, file)
    elif kind in ("http", "https", "databricks", *DRIVERS) and re.match("//[^/]", rest) and _has_port(uri):
        module = driver or DRIVERS.get(kind)
        if module and find_spec(module) is None:
            raise ValueError(f"tracking-uri: {scheme}:// needs {module}, which is not installed: install it, or give another URI")
    else:
        like = ""
        if scheme == "sqlite" and rest:
            like = f": did you mean sqlite:///{rest if re.match('/[^/]', rest) else rest.lstrip('/')}?"
        elif re.match(r"\d+", rest):
            like = f": did you mean http://{uri}?"
        raise ValueError(f"tracking-uri: {EXPECTED}; got {uri!r}{like}")


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a SQLite database; None for another tracker."""
    scheme, _, rest = uri.partition(":///")
    return Path(unquote(rest.partition("?")[0])).absolute() if scheme.partition("+")[0] == "sqlite" else None


def checked(uri: str) -> str:
    """Return the URI of a tracker as it is to be written down: that of a SQLite database with an absolute path.

    Raises:
        ValueError: see `refuse_password` and `check_tracking_uri`.
    """
    refuse_password(uri)
    check_tracking_uri(uri)
    scheme, slashes, path = uri.partition(":///")
    return f"{scheme}{slashes}{os.path.abspath(path)}" if sqlite_file(uri) else uri


def _has_port(uri: str) -> bool:
    """Return whether the port of a URI, if it names one, is one."""
    try:
        return urlsplit(uri).port != 0
    except ValueError:
        return False


def _check_file(uri: str, path: Path) -> None:
    """Check that a SQLite database is at a path, or can be made there.

    Raises:
        ValueError: it cannot.
    """
    there = next(place for place in (path, *path.parents) if place.exists())
    if there != path:
        fault = "" if there.is_dir() and os.access(there, os.W_OK) else f"no folder can be made in {there}"
    elif there.is_dir():
        fault = "it is a folder"
    elif not os.access(there, os.R_OK | os.W_OK):
        fault = "it may not be read and written"
    else:
        with there.open("rb") as file:
            fault = "" if file.read(len(BEGINNING)) in (b"", BEGINNING) else "it is another kind of file"
    if fault:
        raise ValueError(f"tracking-uri: expected a place for a SQLite database; got {uri!r}, but {fault}: give another path")
