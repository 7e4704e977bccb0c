"""The main job: the stages in order, then a sweep or an addition, with one driver, one tracker and one executor."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from typing import Any

from cluster.deadline import Deadline, TimeIsUp
from cluster.display import showing
from cluster.executor import open_executor
from cluster.work import TrainingFailed, WorkFailed
from pipeline.config.schema import RunConfig
from pipeline.config.sweep_grid import shared_stages
from pipeline.results.summary import summary
from pipeline.stages import addition, sweep
from pipeline.stages.sequence import run_stages
from pipeline.storage.driver_lock import driver_lock
from pipeline.storage.run import Point, open_run
from pipeline.tracking.tracker import open_tracker

log = logging.getLogger(__name__)


def work(config: RunConfig, conclude: Callable[[str], str] = str) -> int:
    """Run, print the summary, and turn what went wrong into one line and an exit code: 0 done, 1 failed, 3 the time is up.

    Args:
        config: of the run.
        conclude: maps the summary, which is empty where time was up or work failed for good, to what is printed.
    """
    signal.signal(signal.SIGTERM, _stop)
    try:
        with showing():
            summary, code = _finished(config)
        if text := conclude(summary):
            print(text)
        return code
    except (ValueError, OSError) as error:
        log.error("failed: %s", error)
    except KeyboardInterrupt:
        log.error("stopped: finished work is saved; run the same command to continue")
    return 1


def _finished(config: RunConfig) -> tuple[str, int]:
    """Run, and say what was not finished, in one line each. Return the summary and the exit code."""
    try:
        summary, faults = run(config)
    except (WorkFailed, TrainingFailed) as error:
        summary, faults = "", [str(error)]
    except TimeIsUp:
        log.error("the %g minutes are used up: run the same command again", config.minutes)
        return "", 3
    for fault in faults:
        log.error("failed: %s", fault)
    return summary, 1 if faults else 0


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def run(config: RunConfig) -> tuple[str, list[str]]:
    """Run the stages in order and log each as it finishes. Return the summary, and one line for each failure that the run survived.

    Raises:
        ValueError: something the user can mend.
        WorkFailed, TrainingFailed: some work failed for good; the rest is saved.
        TimeIsUp: some work was not begun in time; the rest is saved.
        OSError: storage gave up.
    """
    folder = open_run(config.run)
    if isinstance(folder, Point):
        raise ValueError(f"{folder.uri} is a point of a sweep: start its run, {folder.parent.uri}, with --sweep as before")
    faults: list[str] = []
    swept = None
    executor = open_executor(config.executor, Deadline.after(config.minutes))
    with driver_lock(folder) as leaving:
        tracker = open_tracker(config, folder)
        status = "FAILED"
        try:
            tracker.begin()
            stages = shared_stages(config) if config.sweep else config.needed_stages
            results = run_stages(config, folder, tracker, executor, stages)
            missing = results.missing_shards(stages)
            if config.sweep:
                swept = sweep.execute(config, folder, tracker, executor, results)
                missing += swept.missing
                faults += [f"{name} failed ({cause})" for name, cause in swept.failed.items()]
            if config.add and (added := addition.execute(config, folder, executor)):
                missing += [f"added/{shard}" for shard in added.missing]
            if missing:
                faults.append(f"the release lacks {len(missing)} shards, and the same command tries them again: {', '.join(missing)}")
            status = "FAILED" if faults else "FINISHED"
        finally:
            leaving.set()  # a driver that lost the run still closes what it holds
            tracker.close(status)
            executor.close()
    return swept.text if swept else summary(config, results), faults
