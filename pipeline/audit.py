"""One verdict on the release of a finished run: `python pipeline/audit.py --run URI --minutes 60`.

Trains the standing adversaries, cheapest and strongest first, and reports on one page, in one card and in one line.
Exit codes: 0 done, 1 it failed, 2 wrong usage, 3 the time was up: run the same command again.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import Literal

from pipeline.config.flags import call
from pipeline.config.tracking_uri import checked
from pipeline.storage.run import existing_run


def _audit_run(
    run: str,
    adversaries: tuple[str, ...] = (),
    minutes: float | None = None,
    executor: Literal["ray", "local"] | None = None,
    workers: int | None = None,
    tracking_uri: str | None = None,
) -> int:
    """Train adversaries against a release; report on one page, in one JSON card and in one line whether it holds.

    The cheapest and strongest come first. They become victims of the run, trained with its settings and seeds: its report, if it has one,
    its table and MLflow show them.

    Args:
        run: folder or URI (s3://...) of a run with a release, or of a point of a sweep
        adversaries: countermeasures instead of the standing set, as in grayscale+jpeg-10
        minutes: begin no training and no epoch after this many minutes: exit code 3, and the same command continues
        executor: what runs the work, as in run.py; that of the run if not given
        workers: trainings at a time, as in run.py; that of the run if not given
        tracking_uri: MLflow server or database; that of the run if not given; none: nothing is logged
    """
    from pipeline.stages.audit import work  # loads torch, which takes seconds that `--help` need not wait

    given = {"executor": executor, "workers": workers, "tracking_uri": None if tracking_uri is None else checked(tracking_uri)}
    start = {name: value for name, value in given.items() if value is not None}
    words = ["python", "pipeline/audit.py", "--run", run, *(("--adversaries", *adversaries) if adversaries else ())]
    return work(existing_run(run), shlex.join(words), adversaries, minutes=minutes, **start)


def main(arguments: Sequence[str] | None = None, program: str = "audit.py") -> int:
    """Audit, and return the exit code: 0 for success, 1 for a failure, which is printed, 2 for wrong usage, 3 when the time was up."""
    try:
        return call(_audit_run, program, arguments)
    except (ValueError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
