"""An audit: adversaries are trained against the release of a finished run, as victims of that run, and a page and a card say how it held.

Victims with an outcome are not trained again, so that an audit goes on where another start of the run has stopped, and the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.config.faults import one_line
from pipeline.config.recorded import recorded
from pipeline.config.schema import STAGES, UNTRACKED, RunConfig
from pipeline.pages.audit_page import render
from pipeline.results.audit import audit, card
from pipeline.results.run_results import RunResults
from pipeline.results.verdict import held_out
from pipeline.stages import job, outcome
from pipeline.stages.sequence import check
from pipeline.storage.layout import AUDIT, CARD, MANIFEST, PAGE
from pipeline.storage.records import to_json
from pipeline.storage.run import Run, sweep_of
from pipeline.storage.stage import Manifest
from sep.countermeasures.standing import STANDING, cheapest_first


def work(run: Run, command: str, adversaries: Sequence[str] = (), **start: Any) -> int:
    """Train what is missing, write page and card, and print the verdict in one line. Return the exit code: see `job.work`.

    Args:
        run: with a release, or a point of a sweep with one.
        command: the command of this start, which goes on with the audit.
        adversaries: countermeasures to try; the standing set, and two that the release was not crafted for, if none is given.
        start: settings of this start, such as `minutes`, instead of the run's own.

    Raises:
        ValueError: the run has no release, its record is damaged, or a setting does not fit.
    """
    Manifest.load(run, "protect")
    before, swept = recorded(run), sweep_of(run)
    asked = {"victim", *(["protect"] if swept else []), *(["report"] if _has_report(run, before) else [])}
    stages = tuple(name for name in STAGES if name in asked)
    try:
        config = replace(before, sweep=tuple(swept), stages=stages, overwrite=True, add=None, **start)
        results = RunResults.read(run)
        measured = dict.fromkeys(row["countermeasure"] for row in results.trials)  # stays in the results of the run
        names = cheapest_first((*(adversaries or (*STANDING, *held_out(results))), *measured), config.victim)
        unsuited = _unsuited(config, run, names)
        config = _against(config, [name for name in names if name not in unsuited])
    except ValueError as error:
        raise ValueError(one_line(error)) from error
    return job.work(config, lambda _: conclude(config, run, unsuited, command))


def _has_report(run: Run, before: RunConfig) -> bool:
    return "report" in before.stages or run.child("report").exists(MANIFEST)


def _against(config: RunConfig, names: Sequence[str]) -> RunConfig:
    return replace(config, victim=replace(config.victim, countermeasures=tuple(names)))


def _unsuited(config: RunConfig, run: Run, names: Sequence[str]) -> Mapping[str, str]:
    """Return the adversaries that cannot be tried on these images or on this machine, with the reason."""
    found: dict[str, str] = {}
    for name in names[1:]:  # what is wrong with the plain training stops the audit
        try:
            check(replace(_against(config, [name]), sweep=(), stages=("victim",)), run)
        except ValueError as error:
            found[name] = one_line(error)
    return found


def conclude(config: RunConfig, run: Run, unsuited: Mapping[str, str], command: str) -> str:
    """Write page and card of the results so far, log them where the run was logged, and return what to print.

    Raises:
        ValueError: a record of the run is damaged.
        OSError: storage refused.
    """
    found, folder = audit(RunResults.read(run), config.victim.countermeasures, unsuited), run.child(AUDIT)
    folder.write(CARD, to_json(card(found)))
    folder.write(PAGE, render(found, command).encode())
    if config.tracking_uri != UNTRACKED:
        outcome.show(run, "audit")
    return f"\n{found.line}\n\n  page      {folder.uri}/{PAGE}\n  card      {folder.uri}/{CARD}"
