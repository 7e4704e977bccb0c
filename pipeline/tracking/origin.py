"""The origin of a run: who started it, with which code, and what it said."""

from __future__ import annotations

import getpass
import logging
import shlex
import sys
import time
from contextlib import suppress
from pathlib import Path

from pipeline.tracking.mlflow_store import Store

CODE = Path(__file__).parents[2]
LINES = 20_000  # of a log; the last ones are logged


def origin(store: Store) -> dict[str, str]:
    """Return the tags by which MLflow shows the user, the source and the commit of a run."""
    tags = {"mlflow.source.name": "pipeline/run.py", "mlflow.source.type": "LOCAL", "command": shlex.join(["python", *sys.argv])}
    with suppress(Exception):  # a machine may know no name for its user
        tags["mlflow.user"] = getpass.getuser()
    if commit := store.commit_of(str(CODE)):
        tags["mlflow.source.git.commit"] = commit
    return tags


class RunLog(logging.Handler):
    """The log of this start, saved to become an artifact."""

    def __init__(self) -> None:
        """Begin to listen."""
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._lines: list[str] = []
        self.file = time.strftime("log/%Y-%m-%d_%H-%M-%S.txt", time.gmtime())
        logging.getLogger().addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self._lines.append(self.format(record))
        del self._lines[:-LINES]

    def files(self) -> dict[str, bytes]:
        """Return the log so far, by the name of its artifact."""
        return {self.file: "\n".join([*self._lines, ""]).encode()}

    def close(self) -> None:
        """Stop listening."""
        logging.getLogger().removeHandler(self)
        super().close()
