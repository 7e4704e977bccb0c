"""The main job: images in, protected shards and measured victims out.

`python pipeline/run.py --help` lists every setting. Exit codes: 0 done, 1 the run failed, 2 wrong usage.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from typing import Any

from cluster import session
from cluster.pool import WorkFailed
from cluster.training import TrainingFailed
from pipeline.config.command_line import parse
from pipeline.config.schema import RunConfig
from pipeline.results.run_results import RunResults
from pipeline.results.summary import summary
from pipeline.stages import addition, sweep
from pipeline.stages.sequence import run_stages
from pipeline.storage.driver_lock import driver_lock
from pipeline.storage.layout import Point, open_run
from pipeline.tracking.tracker import open_tracker

log = logging.getLogger(__name__)


def run(config: RunConfig) -> tuple[str, list[str]]:
    """Run the stages in order, logging each as it finishes; returns the summary, and what failed while the rest went on.

    Raises:
        ValueError: something the user can mend.
        WorkFailed, TrainingFailed: some work failed for good; the rest is kept.
        OSError: storage gave up.
    """
    folder = open_run(config.run)
    if isinstance(folder, Point):
        raise ValueError(f"{folder.uri} is a point of a sweep: start its run, {folder.run.uri}, with --sweep as before")
    faults: list[str] = []
    swept = None
    with driver_lock(folder) as leaving:
        tracker = open_tracker(config, folder)
        status = "FAILED"
        try:
            missing = run_stages(config, folder, tracker, sweep.shared_stages(config) if config.sweep else config.needed_stages)
            if config.sweep:
                swept = sweep.execute(config, folder, tracker)
                missing += swept.missing
                faults += [f"{name} failed ({cause})" for name, cause in swept.failed.items()]
            if config.add and (added := addition.execute(config, folder)):
                missing += [f"added/{shard}" for shard in added.missing]
            if missing:
                faults.append(f"the release lacks {len(missing)} shards, and the same command tries them again: {', '.join(missing)}")
            status = "FAILED" if faults else "FINISHED"
        finally:
            leaving.set()  # a driver that lost the run still closes what it holds
            tracker.close(status)
            session.close()
    return swept.text if swept else summary(config, RunResults.read(folder)), faults


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, and turn what went wrong into one line and an exit code."""
    config = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr, force=True)
    signal.signal(signal.SIGTERM, _stop)
    try:
        summary, faults = run(config)
        print(summary)
    except (ValueError, OSError, WorkFailed, TrainingFailed) as error:
        log.error("failed: %s", error)
        return 1
    except KeyboardInterrupt:
        log.error("stopped: everything finished so far is kept, and the same command goes on from there")
        return 1
    for fault in faults:
        log.error("failed: %s", fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
