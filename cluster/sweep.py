"""Trials on Ray Tune: one process each, as many at a time as there is room for, failures kept to the end."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from ray import tune

from cluster.pool import WorkFailed, describe

log = logging.getLogger(__name__)

Report = Callable[[dict[str, float]], None]
RETRIES = 2  # after a dead process or a storage error; other errors are final
FAILED = "failed"  # the report of a trial that is not worth another try; names the cause
# Only our own lines on the console, no result files beside the trials' own, and Ctrl-C stops the run as everywhere else.
SETTINGS = {"RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_DISABLE_SIGINT_HANDLER": "1"}


class _Progress(tune.Callback):  # type: ignore[misc]  # ray ships no types
    """One line per finished trial, in the driver, and the causes of those that failed."""

    def __init__(self, what: str, total: int, on_result: Callable[[str, dict[str, Any]], None]) -> None:
        self.what, self.total, self.done, self.on_result = what, total, 0, on_result
        self.causes: dict[str, str] = {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        name = trial.config["name"]
        if FAILED in result:
            self.fail(name, result[FAILED])
        else:
            self.on_result(name, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["name"]
        if name not in self.causes:
            self.done += 1
            log.info("%s: %s done, %d of %d", self.what, name, self.done, self.total)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        log.warning("%s: %s starts again after a dead process or a storage error", self.what, trial.config["name"])

    def fail(self, name: str, cause: str) -> None:
        self.causes[name] = cause
        log.error("%s: %s failed: %s", self.what, name, cause)


def _trial(config: dict[str, Any], function: Callable[[Any, Report], None], cells: Mapping[str, Any]) -> None:
    try:
        function(cells[config["name"]], tune.report)
    except OSError:
        raise  # Tune starts the trial again
    except Exception as error:  # would be the same another time
        tune.report({FAILED: describe(error)})


def sweep(
    function: Callable[[Any, Report], None],
    cells: Mapping[str, Any],
    *,
    what: str,
    at_once: int,
    cpus: float,
    gpu: float,
    on_result: Callable[[str, dict[str, Any]], None],
) -> None:
    """Run `function(cell, report)` for every named cell as a trial of its own.

    Args:
        function: module-level; keeps its outcome itself, and calls `report({metric: value})` as it goes.
        cells: name -> argument; must survive pickling.
        what: for log lines and errors.
        at_once: trials running at a time.
        cpus: CPUs per trial.
        gpu: GPUs per trial; may be a fraction.
        on_result: called in this process with (name, metrics) for each report; a trial that starts again, after its
            process died or storage failed, reports from the beginning.

    Raises:
        WorkFailed: some trials failed, after all others were finished.
    """
    os.environ.update(SETTINGS)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what fails is said once, by us
    progress = _Progress(what, len(cells), on_result)
    with tempfile.TemporaryDirectory() as scratch:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_trial, function=function, cells=dict(cells)), {"cpu": cpus, "gpu": gpu}),
            param_space={"name": tune.grid_search(list(cells))},
            tune_config=tune.TuneConfig(max_concurrent_trials=at_once),
            run_config=tune.RunConfig(
                name=what,
                storage_path=scratch,
                verbose=0,
                callbacks=[progress],
                failure_config=tune.FailureConfig(max_failures=RETRIES),
            ),
        )
        for result in tuner.fit():
            if result.error is not None:  # as often as it was tried
                progress.fail(result.config["name"], describe(result.error))
    if progress.causes:
        raise WorkFailed(what, progress.causes)
