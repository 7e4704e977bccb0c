"""The stages in order, each logged as it finishes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from cluster.deadline import TimeIsUp
from cluster.display import stage
from cluster.executor import Executor
from cluster.watched import watched
from cluster.work import WorkFailed
from pipeline.config.schema import STAGES, RunConfig, StageName, to_tree
from pipeline.results.run_results import RunResults
from pipeline.shards.sizes import is_own_size
from pipeline.stages import pack, protect, surrogate, victim
from pipeline.stages.suitability import check_suitable
from pipeline.storage.layout import CONFIG
from pipeline.storage.records import to_json
from pipeline.storage.run import Run
from pipeline.storage.stage import Manifest
from pipeline.tracking.protocol import Tracker
from pipeline.training.clean_shares import protected_labels

log = logging.getLogger(__name__)


def _report(config: RunConfig, results: RunResults) -> RunResults:
    from pipeline.stages import report  # draws with matplotlib, which no other stage needs

    report.write(config, results)
    return results.after("report")


def _report_what_there_is(config: RunConfig, results: RunResults, tracker: Tracker) -> None:
    """Report the victims that have finished. If that fails as well, as on the same damaged file, say so: what failed first is raised."""
    try:
        tracker.log_stage("report", _report(config, results))
    except (ValueError, OSError) as error:
        log.warning("report: not drawn: %s", error)


RUN: dict[StageName, Callable[[RunConfig, Any, Executor], Manifest]] = {  # of a Run; a point packs nothing and trains no surrogate
    "pack": pack.execute,
    "surrogate": surrogate.execute,
    "protect": protect.execute,
    "victim": victim.execute,
}
TRAINING: tuple[StageName, ...] = ("surrogate", "protect", "victim")


def check(config: RunConfig, folder: Run, results: RunResults | None = None) -> None:
    """Check that the packed images suit the later stages, before hours go into the first of them.

    Args:
        config: of the run.
        folder: of the run, or of a point of its sweep.
        results: of the run, if they were read since it was packed.

    Raises:
        ValueError: they do not, or are not packed.
    """
    packed = results.manifests["pack"] if results else Manifest.load(folder, "pack")
    counts = packed.counts
    labels = partial(protected_labels, folder.child("pack"), packed.shards["train"])
    side = config.input_size
    if is_own_size(counts) and side is None:
        raise ValueError("the images are packed at their own size: give --input-size N, the side in pixels of what networks see")
    check_suitable(config, counts["classes"], counts["train"], labels, (side or counts["height"], side or counts["width"]))


def _as_made(config: RunConfig, results: RunResults) -> dict[str, Any]:
    """Return the settings of this start, but those of the finished stages where they decide what was made."""
    made = results.configuration(config)
    return {name: {**value, **made[name]} if isinstance(value, dict) else made.get(name, value) for name, value in to_tree(config).items()}


def run_stages(config: RunConfig, folder: Run, tracker: Tracker, executor: Executor, stages: Collection[StageName]) -> RunResults:
    """Run the given stages in order. Return what the run has measured then.

    Raises:
        ValueError: something the user can mend.
        WorkFailed, TrainingFailed: some work failed for good; the rest is saved, and finished victims are reported.
        TimeIsUp: some work was not begun in time; the same.
        OSError: storage gave up.
    """
    results: RunResults | None = None  # read once the first stage has ended, for that may mend what is damaged
    first_training = next((name for name in TRAINING if name in stages), None)
    ordered = [name for name in STAGES if name in stages]
    for number, name in enumerate(ordered, 1):
        with stage(name, number, len(ordered)):
            if name == first_training:
                check(config, folder, results)
            watching = watched(executor, tracker.watch(name))
            try:
                if name == "report":
                    results = _report(config, results or RunResults.read(folder))
                else:
                    RUN[name](config, folder, watching)
                    results = results.after(name) if results else RunResults.read(folder)
            except (WorkFailed, TimeIsUp):
                results = RunResults.read(folder)
                tracker.log_stage(name, results)  # the part that has finished
                if name == "victim" and "report" in stages:
                    _report_what_there_is(config, results, tracker)
                raise
            folder.write(CONFIG, to_json(_as_made(config, results)))
            tracker.log_stage(name, results)
    return results or RunResults.read(folder)
