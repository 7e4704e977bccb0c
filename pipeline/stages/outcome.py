"""The finding of a command in a finished run, shown on the run's page and in MLflow."""

from __future__ import annotations

import sys

from pipeline.config.recorded import recorded
from pipeline.stages import report
from pipeline.storage.driver_lock import driver_lock
from pipeline.storage.layout import MANIFEST
from pipeline.storage.run import Point, Run
from pipeline.tracking import afterwards


def show(run: Run, command: str) -> None:
    """Draw the report again, if the run has one, and log what a command has recorded, if the run is in MLflow.

    What hinders this is said in a line, and costs nothing else: storage that may only be read, a driver at work, a damaged record.

    Args:
        run: with the record of the command.
        command: `verify`, `audit`, `detect` or `certify`.
    """
    try:
        with driver_lock(run.parent if isinstance(run, Point) else run):
            _draw_again(run)
            afterwards.log_outcome(run, command)
    except (ValueError, OSError) as error:
        print(f"the outcome is recorded, but not shown on the page of the run or in MLflow: {error}", file=sys.stderr)


def _draw_again(run: Run) -> None:
    """Draw the report again, if the run has one; if the run is too damaged for it, say so."""
    if run.child("report").exists(MANIFEST):
        try:
            report.execute(recorded(run), run)
        except (ValueError, OSError) as error:
            print(f"the outcome is not on the page of the run: {error}", file=sys.stderr)
