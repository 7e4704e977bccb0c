"""A sweep: the protect, victim and report stages for every point of a grid, to weigh the cost of crafting against its effect.

Packing and surrogate are those of the run, and victims on clean images are trained once for all points.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.executor import Executor
from cluster.work import WorkFailed
from pipeline.config.schema import RunConfig, StageName
from pipeline.config.sweep_grid import GridPoint, grid
from pipeline.results.comparison import compare, text
from pipeline.results.run_results import RunResults
from pipeline.stages.sequence import run_stages
from pipeline.storage.folder import Folder
from pipeline.storage.layout import COMPARISON, PAGE, SHARED, STARTED
from pipeline.storage.records import digest
from pipeline.storage.run import begin, point
from pipeline.storage.stage import Stage
from pipeline.tracking.protocol import Tracker

log = logging.getLogger(__name__)

STAGES: tuple[StageName, ...] = ("protect", "victim", "report")


@dataclass(frozen=True)
class SweepResult:
    """The result of a sweep."""

    text: str  # a table of the points that were measured
    missing: list[str]  # shards that points were finished without
    failed: dict[str, str]  # point -> cause


def execute(config: RunConfig, folder: Folder, tracker: Tracker, executor: Executor, shared: RunResults) -> SweepResult:
    """Finish every unfinished point, and compare all points.

    Args:
        config: of the run, whose `sweep` says what the points are.
        folder: of the run, which has a pack and a surrogate.
        tracker: of the run.
        executor: for the work of all points.
        shared: what the run has measured, which the points share.

    Raises:
        ValueError: something the user can mend, such as a configuration that differs from the one a point was begun with.
        OSError: storage gave up.
    """
    asked = grid(config)
    tracker.begin_sweep(shared)
    # Begun points come first: a changed configuration then stops the sweep before any new point uses it.
    ordered = sorted(asked, key=lambda wanted: not point(folder, wanted.name).exists(f"protect/{STARTED}"))
    missing: list[str] = []
    failed: dict[str, str] = {}
    for number, wanted in enumerate(ordered):
        log.info("sweep: %s, point %d of %d", wanted.name, number + 1, len(ordered))
        try:
            missing += _run_point(wanted, folder, tracker, executor)
        except WorkFailed as error:
            log.error("sweep: %s failed, and the other points go on: %s", wanted.name, error)
            failed[wanted.name] = str(error)
    return SweepResult(_conclude(config, asked, folder, tracker), missing, failed)


def _conclude(config: RunConfig, asked: Sequence[GridPoint], folder: Folder, tracker: Tracker) -> str:
    """Compare the protected points, and return the table as text. The stage `report` also draws them, in the run's `comparison/`."""
    runs = [found for wanted in asked if "protect" in (found := RunResults.read(point(folder, wanted.name))).manifests]
    if not runs:
        return "no point of the sweep is protected yet"
    # From cheap to costly.
    runs.sort(key=lambda measured: (measured.gradients_per_image, measured.folder.uri))
    compared = compare(runs)
    if "report" not in config.stages:
        return text(compared)
    from pipeline.pages.comparison_page import VERSION, write  # needs a template engine and matplotlib, which no other stage needs

    made_from = digest([[*(stage.digest for stage in of.manifests.values()), *of.unfinished.values()] for of in runs])
    section = {"made_from": made_from, "version": VERSION}
    manifests = {name: manifest for measured in runs for name, manifest in measured.manifests.items()}
    inputs = tuple(manifests[name] for name in SHARED if name in manifests)  # baselines need no surrogate
    stage = Stage(folder, COMPARISON, section, seed=config.seed, inputs=inputs, overwrite=True)
    if stage.manifest is None:
        write(compared, stage.folder, title=f"Sweep of {folder.path.rstrip('/').rsplit('/', 1)[-1]}")
        stage.finish({"points": len(runs)})
    tracker.log_outcome(stage.folder, text(compared))
    return f"{text(compared)}\n\n  page      {stage.folder.uri}/{PAGE}"


def _run_point(wanted: GridPoint, run: Folder, tracker: Tracker, executor: Executor) -> list[str]:
    """Run and log the stages of one point. Return the shards that it was finished without."""
    folder = begin(run, wanted.name, wanted.settings)
    nested = tracker.point(wanted.config, folder)
    status = "FAILED"
    try:
        stages = [name for name in wanted.config.needed_stages if name in STAGES]
        missing = run_stages(wanted.config, folder, nested, executor, stages).missing_shards(stages)
        status = "FAILED" if missing else "FINISHED"
        return [f"sweep/{wanted.name}/{shard}" for shard in missing]
    finally:
        nested.close(status)
