"""The records of a run's stages: their manifests, and the trials, of which some may be missing."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from typing import Any

from pipeline.shards.tables import read_table
from pipeline.storage.layout import MANIFEST, RESULTS, UNFINISHED
from pipeline.storage.records import digest
from pipeline.storage.run import Run
from pipeline.storage.stage import Manifest, read_started

log = logging.getLogger(__name__)

MEASURED = ("pack", "surrogate", "protect", "victim")

Manifests = Mapping[str, Manifest]  # by stage, in order


def read_manifests(run: Run, stages: Collection[str] = MEASURED) -> dict[str, Manifest]:
    """Return the manifests of the finished stages among these.

    Raises:
        ValueError: a manifest is damaged.
    """
    return {stage: Manifest.load(run, stage) for stage in MEASURED if stage in stages and run.child(stage).exists(MANIFEST)}


def current(written: Manifests) -> dict[str, Manifest]:
    """Return the manifests without those of stages whose inputs were made anew since, which are named in a warning."""
    found: dict[str, Manifest] = {}
    for stage in (stage for stage in MEASURED if stage in written):
        inputs = written[stage].asked["inputs"]
        stale = [name for name, digest in inputs.items() if name not in found or found[name].digest != digest]
        if stale:
            log.warning("%s is left out: it was made from an earlier %s; run it again", stage, " and ".join(stale))
        else:
            found[stage] = written[stage]
    return found


def read_trials(run: Run, manifests: Manifests) -> tuple[list[dict[str, Any]], list[str], dict[str, Any]]:
    """Return the trials, the names of those that failed, and what the stage was asked for.

    While some have failed, the others count only if they were trained on what the earlier stages have made now.
    """
    nothing: tuple[list[dict[str, Any]], list[str], dict[str, Any]] = ([], [], {})
    victim = run.child("victim")
    if "victim" in manifests:
        return read_table(victim, RESULTS).to_pylist(), [], manifests["victim"].asked
    if not victim.exists(UNFINISHED):
        return nothing
    try:
        asked, left = read_started(run, "victim"), json.loads(victim.read(UNFINISHED))
        now = {name: manifests[name].digest if name in manifests else None for name in asked["inputs"]}
        of_these = left["asked"] == digest(asked) and asked["inputs"] == now
        return (left["trials"], left["missing"], asked) if of_these else nothing
    except (FileNotFoundError, ValueError, KeyError):  # begun anew, which was cut short
        return nothing
