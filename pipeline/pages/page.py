"""The report of a run: one page that needs no server and makes no request."""

from __future__ import annotations

import base64
import platform
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC
from functools import partial
from typing import Any

from pipeline.config import settings_file
from pipeline.config.marks import without
from pipeline.config.schema import UNTRACKED, RunConfig
from pipeline.pages import html
from pipeline.pages.alt_texts import alt_texts
from pipeline.pages.gallery import COUNTERED
from pipeline.results.commands import command
from pipeline.results.detection import Detection
from pipeline.results.findings import findings, made_with, on_missing, scope, surrogates
from pipeline.results.machine import code_version, hardware
from pipeline.results.next_steps import next_steps
from pipeline.results.run_results import RunResults
from pipeline.results.summary import headline
from pipeline.results.thresholds import interval
from pipeline.results.verdict import verdict
from pipeline.storage.layout import MANIFEST
from pipeline.storage.run import sweep_of
from sep.countermeasures.registry import plan
from sep.methods.registry import METHODS

SHOWN_REASONS = 10


def render(config: RunConfig, results: RunResults, drawn: Mapping[str, Mapping[str, bytes]]) -> str:
    """Return the page; `drawn` has its pictures, by theme and name."""
    found, refusals, said = results.manifests, results.refusals, findings(results)
    stages = [*found, *(["victim"] if results.missing_trials else []), "report"]  # whatever the last start was asked for
    tree = results.configuration(config) | {"stages": stages, "sweep": sweep_of(results.folder)}
    return html.render(
        "report.html.j2",
        title=results.folder.path.rstrip("/").rsplit("/", 1)[-1],
        figures=headline(results),
        found=found,
        trials=results.trials,
        pairs=results.pairs,
        shared=any(pair.share for pair in results.pairs),
        findings=said.overall + on_missing(results),
        countered=said.countermeasures,
        crafted_for=lambda name: plan(name).crafted_for(results.count("protect", "views") or ()),
        scope=scope(results.pairs) if results.pairs else "",
        verdict=verdict(results),
        alts=alt_texts(results, drawn["light"]),
        per_class=_per_class(results),
        steps=next_steps(config if config.tracking_uri == UNTRACKED else replace(config, tracking_uri=None), results),
        interval=partial(interval, tests=results.measured_images) if results.of_release else None,
        facts=_facts(results),
        published=METHODS[results.count("protect", "method")].undone if "protect" in found else "",
        surrogates=surrogates(results) if "protect" in found else "",
        made_with=made_with(results) if "protect" in found else "",
        released=_released(results),
        detection=Detection.of(results.found["detect"]) if "detect" in results.found else None,
        certificate=results.found.get("certify"),
        protection=_protection(results) if "protect" in found else {},
        refused=refusals.first,
        reasons=refusals.reasons[:SHOWN_REASONS],
        pictures={name: {theme: base64.b64encode(drawn[theme][name]).decode() for theme in drawn} for name in drawn["light"]},
        countered_prefix=COUNTERED,
        command=command(tree),
        settings=settings_file.text(without(tree, ["config"])),
        versions={"python": platform.python_version(), **list(found.values())[-1].versions},
    )


def _per_class(results: RunResults) -> list[dict[str, Any]]:
    """Return, for each class that the first victim was tested on, its test images and how many percent of them it got right."""
    if not results.of_release:
        return []
    first, names = results.of_release[0], results.count("pack", "classes")
    rows = []
    for label, name in enumerate(names):
        counts = [table[label] for table in results.first_confusions]
        if images := sum(counts[0]) // len(first.protected.seeds):
            clean, protected = (100 * row[label] / sum(row) for row in counts)
            taken = max((count, other) for other, count in enumerate(counts[1]))[1]
            unprotected = label not in results.count("protect", "classes")
            rows.append(
                {"name": name, "images": images, "clean": clean, "protected": protected, "taken": names[taken], "as_it_was": unprotected}
            )
    return rows


def _facts(results: RunResults) -> dict[str, str]:
    """Return where the release comes from: when it was made, by what code, on what, and whether it was checked."""
    facts = {}
    if "protect" in results.manifests:
        made = results.folder.child("protect").modified(MANIFEST)
        facts = {"Protected": f"{made.astimezone(UTC):%Y-%m-%d %H:%M} UTC"} if made else {}
        said = results.found["verify"]["said"] if "verify" in results.found else "not yet: run the command below"
        facts |= {"Release digest": results.manifests["protect"].digest, "Verified": said}
    return facts | {"Code": code_version(), "Hardware": f"{hardware()} (where this page was made)"}


def _released(results: RunResults) -> dict[str, list[str]]:
    """Return the names of the classes, by what was done to their images."""
    names, protected = results.count("pack", "classes") or [], results.count("protect", "classes") or []
    others = [name for label, name in enumerate(names) if label not in protected]
    return {"protected": [names[label] for label in protected], "not protected": others}


def _protection(results: RunResults) -> dict[str, Any]:
    """Return what the protect stage counted, with the number of classes in the place of their labels."""
    counts = results.manifests["protect"].counts
    renamed = {
        "epochs": "epochs, counted from 0",
        "protected": "protected images",
        "images": "released images",
        "members": "checkpoints in the ensemble",
        "linf_levels": "largest change, in levels",
    }
    shown = counts | {"classes": len(counts["classes"]), "budget": str(results.budget)}
    return {renamed.get(name, name): value for name, value in shown.items()}
