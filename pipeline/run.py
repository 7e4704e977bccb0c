"""The main job: images in, protected shards and measured victims out.

`python pipeline/run.py --help` lists every setting. Exit codes: 0 done, 1 the run failed, 2 wrong usage.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from cluster import session
from cluster.pool import WorkFailed
from cluster.training import TrainingFailed
from pipeline import grow, pack, protect, report, surrogate, victim
from pipeline.command_line import parse
from pipeline.config import RunConfig, StageName
from pipeline.lock import sole_driver
from pipeline.results import configuration, finished
from pipeline.stage import Manifest, to_json
from pipeline.storage import Folder
from pipeline.tracking import Tracker

log = logging.getLogger(__name__)

RUN: dict[StageName, Callable[[RunConfig, Folder], Manifest]] = {
    "pack": pack.run,
    "surrogate": surrogate.run,
    "protect": protect.run,
    "victim": victim.run,
    "report": report.run,
}
CONFIG = "config.json"


def run(config: RunConfig) -> tuple[str, list[str]]:
    """Run the stages in order, logging each as it finishes; returns the summary, and the shards the run kept going without.

    Raises:
        ValueError: something the user can mend.
        WorkFailed, TrainingFailed: some work failed for good; the rest is kept.
        OSError: storage gave up.
    """
    folder = Folder.open(config.run)
    missing: list[str] = []
    with sole_driver(folder):
        tracker = Tracker(config, folder)
        status = "FAILED"
        try:
            for name in config.needed_stages:
                missing += [f"{name}/{shard}" for shard in RUN[name](config, folder).missing]
                # What the finished stages were made with, whatever this start was asked for besides.
                folder.write(CONFIG, to_json(configuration(config, finished(folder))))
                tracker.log_stage(name)
            if config.add and (added := grow.run(config, folder)):
                missing += [f"added/{shard}" for shard in added.missing]
            status = "FAILED" if missing else "FINISHED"
        finally:
            tracker.close(status)
            session.close()
    return report.summary(config, folder), missing


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, and turn what went wrong into one line and an exit code."""
    config = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr, force=True)
    signal.signal(signal.SIGTERM, _stop)
    try:
        summary, missing = run(config)
        print(summary)
    except (ValueError, OSError, WorkFailed, TrainingFailed) as error:
        log.error("failed: %s", error)
        return 1
    except KeyboardInterrupt:
        log.error("stopped: everything finished so far is kept, and the same command goes on from there")
        return 1
    if missing:
        log.error("failed: the release lacks %d shards, and the same command tries them again: %s", len(missing), ", ".join(missing))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
