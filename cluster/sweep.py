"""Trials on Ray Tune: one process each, as many at a time as fit; failures are raised at the end."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from ray import tune

from cluster.deadline import NEVER, Deadline, TimeIsUp
from cluster.work import TRIAL_RETRIES, Report, WorkFailed, describe

log = logging.getLogger(__name__)

FAILED = "failed"  # the report of a trial that is not worth another try; names the cause
LATE = "late"  # the report of a trial that ends before its last epoch, because the time is up
# Only our own lines on the console, no result files beside the trials' own, and Ctrl-C stops the run as everywhere else.
SETTINGS = {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_DISABLE_SIGINT_HANDLER": "1"}


class _Progress(tune.Callback):  # type: ignore[misc]  # ray ships no types
    """The driver's view of the trials: how many are done, and the causes of those that failed."""

    def __init__(self, what: str, on_result: Callable[[str, dict[str, Any]], None], deadline: Deadline) -> None:
        self.what, self.done, self.on_result, self.deadline = what, 0, on_result, deadline
        self.causes: dict[str, str] = {}
        self.running: set[str] = set()  # trials that began in time

    def __getstate__(self) -> dict[str, Any]:
        """Give Tune nothing to save: no sweep is restored from its files, and whoever receives results may hold threads and files."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if not self.deadline.passed():
            self.running.add(trial.config["name"])

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        name = trial.config["name"]
        if FAILED in result:
            self.fail(name, result[FAILED])
        elif LATE in result:
            self.running.discard(name)
        else:
            self.on_result(name, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["name"]
        if name in self.running:
            self.running.discard(name)
            self.done += 1

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        log.warning("%s: %s starts again after a dead process or a storage error", self.what, trial.config["name"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.running.discard(trial.config["name"])

    def fail(self, name: str, cause: str) -> None:
        self.running.discard(name)
        self.causes[name] = cause
        log.error("%s: %s failed: %s", self.what, name, cause)


class _OutOfTime(tune.Stopper):  # type: ignore[misc]  # ray ships no types
    """Ends the sweep when the time is up, as soon as the trials that began in time have ended."""

    def __init__(self, progress: _Progress) -> None:
        self.progress = progress

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.progress.deadline.passed() and not self.progress.running


def _trial(config: dict[str, Any], function: Callable[[Any, Report], None], tasks: Mapping[str, Any], deadline: Deadline) -> None:
    try:
        deadline.check()
        function(tasks[config["name"]], tune.report)
    except OSError:
        raise  # Tune starts the trial again
    except TimeIsUp:
        tune.report({LATE: True})
    except Exception as error:  # would fail again
        tune.report({FAILED: describe(error)})


def sweep(
    function: Callable[[Any, Report], None],
    tasks: Mapping[str, Any],
    *,
    what: str,
    at_once: int,
    cpus: float,
    gpu: float,
    on_result: Callable[[str, dict[str, Any]], None],
    deadline: Deadline = NEVER,
) -> None:
    """Run `function(task, report)` for every named task as a trial in its own process: see `Executor.sweep`."""
    deadline.check()
    os.environ.update(SETTINGS)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are logged once, below
    progress = _Progress(what, on_result, deadline)
    with tempfile.TemporaryDirectory() as scratch:
        trial = tune.with_parameters(_trial, function=function, tasks=dict(tasks), deadline=deadline)
        tuner = tune.Tuner(
            tune.with_resources(trial, {"cpu": cpus, "gpu": gpu}),
            param_space={"name": tune.grid_search(list(tasks))},
            tune_config=tune.TuneConfig(max_concurrent_trials=at_once),
            run_config=tune.RunConfig(
                name=what,
                storage_path=scratch,
                verbose=0,
                stop=_OutOfTime(progress),
                callbacks=[progress],
                failure_config=tune.FailureConfig(max_failures=TRIAL_RETRIES),
            ),
        )
        for result in tuner.fit():
            if result.error is not None:  # as often as it was tried
                progress.fail(result.config["name"], describe(result.error))
    if progress.done + len(progress.causes) < len(tasks):
        raise TimeIsUp
    if progress.causes:
        raise WorkFailed(what, progress.causes)
