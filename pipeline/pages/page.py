"""The report of a run: one page that needs no server and makes no request."""

from __future__ import annotations

import base64
import platform
import shlex
from collections import Counter
from typing import Any

import yaml

from pipeline.config.presets import from_tree, preset
from pipeline.config.schema import RunConfig, to_tree
from pipeline.pages import html
from pipeline.pages.gallery import COUNTERED
from pipeline.results.findings import findings, in_parts, made_with, on_missing, scope, surrogates
from pipeline.results.run_results import Manifests, budget, configuration, measured_images, pairs, trained
from pipeline.results.summary import headline
from pipeline.shards.tables import read_table
from pipeline.storage.layout import QUARANTINE
from pipeline.storage.records import flatten
from pipeline.storage.run import Run, sweep_of
from sep.countermeasures.registry import clean_share

SHOWN_QUARANTINED = 50
FLAGS_OF_A_CALL = ("preset", "add", "config", "keep_going", "overwrite", "tracking_uri")  # settings that say how, not what


def command(tree: dict[str, Any]) -> str:
    """The command line that asks for these settings: the preset, and a flag for each value that differs from it."""
    base, swept = flatten(to_tree(preset(tree["preset"]))), _told_by_sweep(tree)
    words = ["python", "pipeline/run.py", "--preset", tree["preset"]]
    for name, value in flatten(tree).items():
        if name in FLAGS_OF_A_CALL or name in swept or value == base[name]:
            continue
        words += [f"--{name.replace('_', '-')}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return shlex.join(words)


def _told_by_sweep(tree: dict[str, Any]) -> set[str]:
    """Swept settings that need no flag as well; all do where the preset's values of them would not go with the other settings."""
    swept = {text.partition("=")[0].replace("-", "_") for text in tree["sweep"]}
    others = {name: value for name, value in tree["protect"].items() if f"protect.{name}" not in swept}
    try:
        from_tree({**tree, "protect": others})
    except ValueError:
        return set()
    return swept


def render(config: RunConfig, folder: Run, found: Manifests, drawn: dict[str, dict[str, bytes]]) -> str:
    """The page."""
    there = trained(folder, found)
    stages = [*found, *(["victim"] if there.missing else []), "report"]  # whatever the last start was asked for
    tree = configuration(config, found, there) | {"stages": stages, "sweep": sweep_of(folder)}
    measured = pairs(there.rows)
    said = findings(found, measured, measured_images(folder, found) if measured else 0) + on_missing(there)
    whole, countered = in_parts(said)
    refused = read_table(folder.child("pack"), QUARANTINE).to_pylist() if "pack" in found else []
    return html.render(
        "report.html.j2",
        title=folder.path.rstrip("/").rsplit("/", 1)[-1],
        figures=headline(folder),
        found=found,
        trials=there.rows,
        pairs=measured,
        shared=any(clean_share(pair.clean.countermeasure) for pair in measured),
        findings=whole,
        countered=countered,
        scope=scope(measured) if measured else "",
        surrogates=surrogates(found) if "protect" in found else "",
        made_with=made_with(found) if "protect" in found else "",
        released=_released(found),
        protection=_protection(found) if "protect" in found else {},
        refused=refused[:SHOWN_QUARANTINED],
        reasons=Counter(row["reason"] for row in refused).most_common(10),
        pictures={name: {theme: base64.b64encode(drawn[theme][name]).decode() for theme in drawn} for name in drawn["light"]},
        countered_prefix=COUNTERED,
        command=command(tree),
        settings=yaml.safe_dump({k: v for k, v in tree.items() if k != "config"}, sort_keys=False, allow_unicode=True),
        versions={"python": platform.python_version()} | next(reversed(found.values())).versions,
    )


def _released(found: Manifests) -> dict[str, list[str]]:
    """Names of the classes, by what was done to their images."""
    if "pack" not in found:
        return {}
    names = found["pack"].counts["classes"]
    protected = found["protect"].counts["classes"] if "protect" in found else []
    others = [name for label, name in enumerate(names) if label not in protected]
    return {"protected": [names[label] for label in protected], "not protected": others}


def _protection(found: Manifests) -> dict[str, Any]:
    """What the protect stage says of itself, with the number of classes in the place of their labels."""
    counts = found["protect"].counts
    renamed = {"epochs": "epochs, counted from 0", "protected": "protected images", "images": "released images"}
    shown = counts | {"classes": len(counts["classes"]), "budget": str(budget(found))}
    return {renamed.get(name, name): value for name, value in shown.items()}
