"""The logs of other commands in MLflow when a run is over: their findings in its release, or a comparison.

The run folder says where the run was logged. As while a run goes on, nothing that a tracker does or lacks costs more than a line.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping

from pipeline.config.schema import UNTRACKED
from pipeline.config.tracking_uri import sqlite_file
from pipeline.results.run_results import RunResults
from pipeline.storage.folder import Folder
from pipeline.storage.layout import TRACKING
from pipeline.storage.records import digest
from pipeline.storage.run import Point, Run
from pipeline.tracking import own_database, stage_logs
from pipeline.tracking.mlflow_store import Store
from pipeline.tracking.parent_run import Identity, ParentRun

log = logging.getLogger(__name__)


def logged_run(run: Run) -> ParentRun | None:
    """Return the MLflow run of a run, or of a point of a sweep, as its folder remembers it; None where nothing was logged."""
    own = run.parent if isinstance(run, Point) else run
    try:
        uri = json.loads(own.read(TRACKING)).get("uri")
    except (FileNotFoundError, ValueError):
        return None
    if not uri and not own.is_local:
        return None
    above = ParentRun.of(own, uri)
    found = ParentRun(above.store, run, above.experiment, above) if isinstance(run, Point) else above
    return found if found.id else None


def _check_there(store: Store) -> None:
    """Check that a database file is still where it was: MLflow would make an empty one.

    Raises:
        ValueError: it is not.
    """
    file = sqlite_file(store.uri)
    if not store.artifacts and file and not file.exists():
        raise ValueError(f"{file} is not there any more")


def log_outcome(folder: Run, command: str) -> None:
    """Log what a command found in a release, and the page that shows it, in the MLflow run of that release, if there is one.

    Args:
        folder: of the run.
        command: `verify`, `audit`, `detect` or `certify`.

    Raises:
        ValueError: a record of the run is damaged.
        OSError: storage refused.
    """
    results, parent = RunResults.read(folder), logged_run(folder)
    if parent is None or command not in results.found or parent.logged("protect") != results.digest_of("protect"):
        return
    parent.store.load()
    parent.store.outbox.post(f"what {command} found", lambda: _log_outcome(parent, results, command))
    parent.store.outbox.wait()


def _log_outcome(parent: ParentRun, results: RunResults, command: str) -> None:
    _check_there(parent.store)
    if parent.store.artifacts:
        own_database.follow((parent.above or parent).folder.path)
    if not parent.store.is_active(str(parent.id)):
        raise ValueError("its run was deleted there")
    for stage in ("report", command):
        content = results.digest_of(stage)
        if content and parent.logged(stage) != content:
            parent.finish_stage(stage, content, stage_logs.OF_RUN[stage](parent, results))


def log_comparison(compared: Mapping[str, Run], folder: Folder, text: str, uri: str | None) -> str:
    """Log a comparison as a run of its own, in place of an earlier one of the same folder. Return where, in words; nothing if nowhere.

    Args:
        compared: the runs by their names in the comparison.
        folder: of the comparison.
        text: its tables.
        uri: of the tracker; that of the runs if not given, where they have one in common.
    """
    known = {name: found for name, run in compared.items() if uri != UNTRACKED and (found := logged_run(run))}
    places = {found.store.uri: found.above or found for found in known.values()}
    if uri == UNTRACKED or not (uri or places):
        return ""
    if not uri and len(places) > 1:
        return f"not logged: the runs have {len(places)} trackers, and --tracking-uri names one for the comparison"
    beside = None if uri else next(iter(places.values()))
    home = ParentRun(beside.store, folder, beside.experiment) if beside else ParentRun.of(folder, uri)
    links = {name: found.page for name, found in known.items() if found.store.uri == home.store.uri}
    home.store.load()
    home.store.outbox.post("the comparison", lambda: _log_comparison(home, folder, [run.uri for run in compared.values()], links, text))
    home.store.outbox.wait()
    return (beside or home).place if home.outcome == digest(text) else ""


def _log_comparison(home: ParentRun, folder: Folder, compared: list[str], links: Mapping[str, str], text: str) -> None:
    _check_there(home.store)
    home.open(Identity(digest(compared), None, {"stage": "comparison"}, {}, frozenset(), {}))
    stage_logs.log_comparison(home, folder, text, links)
    home.remember(outcome=digest(text))
    home.close("FINISHED")
