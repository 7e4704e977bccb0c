"""The report of a run: one page that needs no server and makes no request."""

from __future__ import annotations

import base64
import platform
import shlex
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import yaml

from pipeline.config.marks import marked
from pipeline.config.presets import from_tree, preset
from pipeline.config.schema import RunConfig, to_tree
from pipeline.pages import html
from pipeline.pages.gallery import COUNTERED
from pipeline.results.findings import findings, made_with, on_missing, scope, surrogates
from pipeline.results.run_results import RunResults
from pipeline.results.summary import headline
from pipeline.storage.records import flatten
from pipeline.storage.run import sweep_of

SHOWN_REASONS = 10
# Marked settings decide nothing about what is made, but these two: which stages there are, and which point of a sweep it is.
UNTOLD = {"preset", *marked(RunConfig)} - {"stages", "sweep"}


def command(tree: dict[str, Any]) -> str:
    """Return the command that asks for these settings: the preset, and a flag for each value that differs from it.

    Settings that decide only how fast, or what one start does, are left out: the command makes the same on another machine.
    """
    asked, skipped = preset(tree["preset"]), UNTOLD | _told_by_sweep(tree)
    usual = replace(asked.protect, method=tree["protect"]["method"]).resolved()
    base = flatten({**to_tree(asked), "protect": {**to_tree(usual), "method": asked.protect.method}})
    words = ["python", "pipeline/run.py", "--preset", tree["preset"]]
    for name, value in flatten(tree).items():
        if name not in skipped and value != base[name]:
            words += [f"--{name.replace('_', '-')}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return shlex.join(words)


def _told_by_sweep(tree: dict[str, Any]) -> set[str]:
    """Return the swept settings that need no flag besides; none where the preset's values of them do not go with the other settings."""
    swept = {text.partition("=")[0].replace("-", "_") for text in tree["sweep"]}
    others = {name: value for name, value in tree["protect"].items() if f"protect.{name}" not in swept}
    try:
        from_tree({**tree, "protect": others})
    except ValueError:
        return set()
    return swept


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
        scope=scope(results.pairs) if results.pairs else "",
        surrogates=surrogates(results) if "protect" in found else "",
        made_with=made_with(results) if "protect" in found else "",
        released=_released(results),
        protection=_protection(results) if "protect" in found else {},
        refused=refusals.first,
        reasons=refusals.reasons[:SHOWN_REASONS],
        pictures={name: {theme: base64.b64encode(drawn[theme][name]).decode() for theme in drawn} for name in drawn["light"]},
        countered_prefix=COUNTERED,
        command=command(tree),
        settings=yaml.safe_dump({k: v for k, v in tree.items() if k != "config"}, sort_keys=False, allow_unicode=True),
        versions={"python": platform.python_version(), **list(found.values())[-1].versions},
    )


def _released(results: RunResults) -> dict[str, list[str]]:
    """Return the names of the classes, by what was done to their images."""
    names, protected = results.count("pack", "classes") or [], results.count("protect", "classes") or []
    others = [name for label, name in enumerate(names) if label not in protected]
    return {"protected": [names[label] for label in protected], "not protected": others}


def _protection(results: RunResults) -> dict[str, Any]:
    """Return what the protect stage counted, with the number of classes in the place of their labels."""
    counts = results.manifests["protect"].counts
    renamed = {"epochs": "epochs, counted from 0", "protected": "protected images", "images": "released images"}
    shown = counts | {"classes": len(counts["classes"]), "budget": str(results.budget)}
    return {renamed.get(name, name): value for name, value in shown.items()}
