"""Stage 5: what was measured becomes one page that needs no server and makes no request, and a few pictures."""

from __future__ import annotations

import base64
import logging
import platform
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import jinja2
import yaml

from pipeline.config import RunConfig, to_tree
from pipeline.findings import findings, scope, surrogates
from pipeline.presets import preset
from pipeline.results import (
    Finished,
    budget,
    chance,
    checkpoints,
    configuration,
    finished,
    headline,
    measured_images,
    pairs,
    psnr_values,
    similarities,
    trials,
)
from pipeline.shards import read_shard, read_table
from pipeline.stage import Manifest, Stage, flatten
from pipeline.storage import Folder

log = logging.getLogger(__name__)

PAGE = "index.html"
SHOWN_SAMPLES = 5
SHOWN_QUARANTINED = 50
FLAGS_OF_A_CALL = ("preset", "add", "config", "keep_going", "overwrite", "tracking_uri")  # settings that say how, not what

__all__ = ["headline", "pictures", "run", "summary"]


def run(config: RunConfig, folder: Folder) -> Manifest:
    """Write `report/index.html` and `report/*.png` from whatever stages have finished.

    Raises:
        ValueError: nothing has finished yet, or what a stage recorded is damaged.
    """
    found = finished(folder)
    if not found:
        raise ValueError(f"there is nothing to report in {folder.uri}: run at least the pack stage first (--stages pack report)")
    # A report is quick and holds nothing of its own: when there is something new to show, it is made again without asking.
    stage = Stage(folder, "report", {}, seed=config.seed, inputs=tuple(found), overwrite=True)
    if stage.manifest:
        return stage.manifest
    drawn = {"light": pictures(folder, found), "dark": pictures(folder, found, dark=True)}
    for name, png in drawn["light"].items():
        stage.folder.write(f"{name}.png", png)
    page = render(config, folder, found, drawn)
    stage.folder.write(PAGE, page.encode())
    return stage.finish({"pictures": sorted(drawn["light"]), "bytes": len(page.encode())})


def pictures(folder: Folder, found: Finished, *, dark: bool = False) -> dict[str, bytes]:
    """The PNGs that can be drawn of the stages given, by name: samples, psnr, similarity, accuracy, surrogate."""
    from pipeline import figures  # matplotlib takes seconds to load, which a summary should not wait for

    theme = figures.DARK if dark else figures.LIGHT
    drawn = {}
    if "protect" in found:
        drawn["samples"] = figures.samples(_triplets(folder, found), _shown_levels(found), theme)
        values = psnr_values(folder)
        if values:
            drawn["psnr"] = figures.psnr(values, theme)
        alike = similarities(folder)
        if alike:
            drawn["similarity"] = figures.similarity(alike, theme)
    measured = pairs(trials(folder, found))
    if measured:
        drawn["accuracy"] = figures.accuracy(measured, chance(found), theme)
    if "surrogate" in found:
        chosen = found["protect"].counts["epochs"] if "protect" in found else []
        drawn["surrogate"] = figures.surrogate(checkpoints(folder), chosen, theme)
    return drawn


def _shown_levels(found: Finished) -> int:
    """The change that a picture of changes has to show: the radius of the L-infinity ball, or else the largest there is."""
    allowed = budget(found)
    return allowed.limit if allowed.norm == "linf" else max(1, found["protect"].counts["linf_levels"])


def _triplets(folder: Folder, found: Finished) -> list[Any]:
    """The first image of a few classes spread over the protected ones, before and after; reads only the shards these are in."""
    from pipeline.figures import Triplet

    classes = found["pack"].counts["classes"]
    table = read_table(folder.child("protect"), "samples.parquet", ["key", "label", "shard"])
    first: dict[int, tuple[str, str]] = {}
    for key, label, shard in zip(*(table[name].to_pylist() for name in ("key", "label", "shard")), strict=True):
        first.setdefault(label, (key, shard))
    labels = sorted(first.keys() & set(found["protect"].counts["classes"]))
    count = min(SHOWN_SAMPLES, len(labels))
    wanted = [first[labels[i * len(labels) // count]] for i in range(count)]
    images: dict[str, dict[str, Any]] = {"pack": {}, "protect": {}}
    for stage, samples in images.items():
        for shard in found[stage].shards["train"]:
            keys = {key for key, name in wanted if name == shard.name}
            if keys:
                samples |= {sample.key: sample for sample in read_shard(folder.child(stage), shard) if sample.key in keys}
    return [Triplet(classes[images["pack"][key].label], images["pack"][key].pixels, images["protect"][key].pixels) for key, _ in wanted]


def command(tree: dict[str, Any]) -> str:
    """The command line that asks for these settings: the preset, and a flag for each value that differs from it."""
    base = flatten(to_tree(preset(tree["preset"])))
    words = ["python", "pipeline/run.py", "--preset", tree["preset"]]
    for name, value in flatten(tree).items():
        if name in FLAGS_OF_A_CALL or value == base[name]:
            continue
        words += [f"--{name.replace('_', '-')}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return shlex.join(words)


def render(config: RunConfig, folder: Folder, found: Finished, drawn: dict[str, dict[str, bytes]]) -> str:
    """The page."""
    tree = configuration(config, found)
    rows = trials(folder, found)
    measured = pairs(rows)
    refused = read_table(folder.child("pack"), "quarantine.parquet").to_pylist() if "pack" in found else []
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=folder.path.rstrip("/").rsplit("/", 1)[-1],
        figures=headline(folder),
        found=found,
        trials=rows,
        pairs=measured,
        findings=findings(found, measured, measured_images(folder, found) if measured else 0),
        scope=scope(measured) if measured else "",
        surrogates=surrogates(found) if "protect" in found else "",
        released=_released(found),
        protection=_protection(found) if "protect" in found else {},
        refused=refused[:SHOWN_QUARANTINED],
        reasons=Counter(row["reason"] for row in refused).most_common(10),
        pictures={name: {theme: base64.b64encode(drawn[theme][name]).decode() for theme in drawn} for name in drawn["light"]},
        command=command(tree),
        settings=yaml.safe_dump({k: v for k, v in tree.items() if k != "config"}, sort_keys=False, allow_unicode=True),
        versions={"python": platform.python_version()} | next(reversed(found.values())).versions,
    )


def _released(found: Finished) -> dict[str, list[str]]:
    """Names of the classes, by what was done to their images."""
    if "pack" not in found:
        return {}
    names = found["pack"].counts["classes"]
    protected = found["protect"].counts["classes"] if "protect" in found else []
    others = [name for label, name in enumerate(names) if label not in protected]
    return {"protected": [names[label] for label in protected], "not protected": others}


def _protection(found: Finished) -> dict[str, Any]:
    """What the protect stage says of itself, with the number of classes in the place of their labels."""
    counts = found["protect"].counts
    renamed = {"epochs": "epochs, counted from 0", "protected": "protected images", "images": "released images"}
    shown = counts | {"classes": len(counts["classes"]), "budget": str(budget(found))}
    return {renamed.get(name, name): value for name, value in shown.items()}


def summary(config: RunConfig, folder: Folder) -> str:
    """The short table for the end of a run: the figures there are, and where to look next."""
    known = headline(folder)

    def line(label: str, name: str, unit: str, note: str = "", form: str = ".1f") -> list[str]:
        return [f"  {label:<24}{known[name]:>8{form}} {unit:<4}{note}".rstrip()] if name in known else []

    seeds = f"{known.get('victim')}, {known.get('seeds')} seed{'s' if known.get('seeds') != 1 else ''}"
    lines = [
        *line("clean victim", "clean_accuracy", "%", seeds),
        *line("protected victim", "protected_accuracy", "%", f"chance is {known.get('chance_accuracy', 0):.3g} %"),
        *line("protected, relabelled", "protected_relabelled_accuracy", "%", "after the best relabelling of its predictions"),
        *line("others, clean", "clean_other_accuracy", "%", "classes that are not protected"),
        *line("others, protected", "protected_other_accuracy", "%", "the same, trained on the release"),
        *line("largest change", "linf_levels", "", f"of 255 grey levels; the budget is {known.get('budget')}", "d"),
        *line("PSNR", "psnr_db", "dB", f"mean of {known.get('protected_images')} images by {known.get('method')}"),
        *line("missing shards", "missing_shards", "", "crafting them failed, and the run kept going without them", "d"),
        *line("quarantined", "quarantined", "", f"of {known.get('train_images')} + {known.get('test_images')} images packed", "d"),
    ]
    where = shlex.quote(folder.uri)
    looks = [f"audit     python pipeline/verify.py --run {where}"]
    if folder.is_local and not config.tracking_uri:
        looks.insert(0, f"runs      make ui RUN={where}")
    if folder.exists(f"report/{PAGE}"):
        looks.insert(0, f"report    {folder.uri}/report/{PAGE}")
    return "\n".join(["", *lines, "", *(f"  {look}" for look in looks)])
