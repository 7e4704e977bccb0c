"""Stage 5: what was measured becomes one page that needs no server and makes no request, and a few pictures."""

from __future__ import annotations

import base64
import logging
import math
import platform
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import jinja2
import yaml

from pipeline.config import RunConfig, preset, to_tree
from pipeline.results import (
    Finished,
    Pair,
    chance,
    checkpoints,
    configuration,
    finished,
    headline,
    pairs,
    psnr_values,
    trials,
)
from pipeline.shards import read_shard, read_table
from pipeline.stage import Manifest, Stage, flatten
from pipeline.storage import Folder

log = logging.getLogger(__name__)

PAGE = "index.html"
SHOWN_SAMPLES = 5
SHOWN_QUARANTINED = 50
FAR = 10.0  # points; a relabelled accuracy this far above chance is no accident of the best assignment
FLAGS_OF_A_CALL = ("preset", "config", "overwrite", "tracking_uri")  # settings that say how, not what

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
    """The PNGs that can be drawn of the stages given, by name: samples, psnr, accuracy, surrogate."""
    from pipeline import figures  # matplotlib takes seconds to load, which a summary should not wait for

    theme = figures.DARK if dark else figures.LIGHT
    drawn = {}
    if "protect" in found:
        drawn["samples"] = figures.samples(_triplets(folder, found), found["protect"].counts["eps_levels"], theme)
        values = psnr_values(folder)
        if values:
            drawn["psnr"] = figures.psnr(values, theme)
    measured = pairs(trials(folder, found))
    if measured:
        drawn["accuracy"] = figures.accuracy(measured, chance(found), theme)
    if "surrogate" in found:
        chosen = found["protect"].counts["epochs"] if "protect" in found else []
        drawn["surrogate"] = figures.surrogate(checkpoints(folder), chosen, theme)
    return drawn


def _triplets(folder: Folder, found: Finished) -> list[Any]:
    """The first image of a few classes spread over all, before and after; reads only the shards these are in."""
    from pipeline.figures import Triplet

    classes = found["pack"].counts["classes"]
    table = read_table(folder.child("protect"), "samples.parquet", ["key", "label", "shard"])
    first: dict[int, tuple[str, str]] = {}
    for key, label, shard in zip(*(table[name].to_pylist() for name in ("key", "label", "shard")), strict=True):
        first.setdefault(label, (key, shard))
    labels = sorted(first)
    count = min(SHOWN_SAMPLES, len(labels))
    wanted = [first[labels[i * len(labels) // count]] for i in range(count)]
    images: dict[str, dict[str, Any]] = {"pack": {}, "protect": {}}
    for stage, samples in images.items():
        for shard in found[stage].shards["train"]:
            keys = {key for key, name in wanted if name == shard.name}
            if keys:
                samples |= {sample.key: sample for sample in read_shard(folder.child(stage), shard) if sample.key in keys}
    return [Triplet(classes[images["pack"][key].label], images["pack"][key].pixels, images["protect"][key].pixels) for key, _ in wanted]


def findings(found: Finished, measured: list[Pair]) -> list[str]:
    """What the figures say, and what they do not, in plain sentences."""
    if not measured:
        return ["No victim has been trained yet, so this run says nothing about how well the images are protected."]
    guess, tests = chance(found), found["pack"].counts["test"]
    margin = 300 * math.sqrt(guess / 100 * (1 - guess / 100) / tests)
    pair = measured[0]
    clean, protected, relabelled = pair.clean.last.mean, pair.protected.last.mean, pair.protected.relabelled.mean
    said = [
        f"Trained on the clean images, {pair.name} gets {clean:.1f} % of the clean test images right; trained on the protected ones, "
        f"{protected:.1f} %: {abs(clean - protected):.1f} points {'less' if protected <= clean else 'more'}."
    ]
    if clean <= guess + margin:
        return [
            *said,
            "The clean victim itself is hardly better than guessing, so the comparison says nothing: train longer or on more images.",
        ]
    if clean - protected < FAR:
        return [*said, "That is no protection to speak of."]
    if protected < guess - margin:
        said.append(f"That is below chance ({guess:.3g} %): the victim is not ignorant but systematically wrong.")
    elif protected <= guess + margin:
        said.append(f"With {tests:,} test images that cannot be told from chance ({guess:.3g} %).")
    else:
        said.append(f"That is {protected - guess:.1f} points above chance ({guess:.3g} %): something useful is still learned.")
    said.append(_on_relabelling(clean, protected, relabelled, guess))
    others = [other for other in measured[1:] if other.protected.last.mean > protected + FAR]
    if others:
        worst = max(others, key=lambda other: other.protected.last.mean)
        said.append(
            f"The protection is weakest against {worst.name}: {worst.protected.last.mean:.1f} % on protected images, "
            f"{worst.clean.last.mean:.1f} % on clean ones."
        )
    return said


def _on_relabelling(clean: float, protected: float, relabelled: float, guess: float) -> str:
    gain = relabelled - protected
    outcome = f"After the best one-to-one relabelling of its predictions the protected victim gets {relabelled:.1f} % right"
    if gain < FAR:
        return f"{outcome}: relabelling recovers next to nothing."
    if relabelled < guess + FAR:
        return f"{outcome}, which is near chance as well: relabelling recovers nothing useful."
    share = round(100 * gain / (clean - protected))
    return (
        f"{outcome}, far above chance: somebody who knows of the fixed shift of labels can undo it, and regains {share} % of what was lost."
    )


def scope(measured: list[Pair]) -> str:
    """For what the figures speak, and for nothing else."""
    cells = [pair.protected for pair in measured]
    networks = ", ".join(dict.fromkeys(cell.network for cell in cells))
    countermeasures = ", ".join(dict.fromkeys(cell.countermeasure for cell in cells))
    seeds = sorted({seed for cell in cells for seed in cell.seeds})
    spread = "" if len(seeds) > 1 else " A single seed says nothing about spread."
    return (
        f"These figures speak for the networks ({networks}), countermeasures ({countermeasures}) and seeds "
        f"({', '.join(map(str, seeds))}) measured here, and for no others.{spread}"
    )


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
        findings=findings(found, measured),
        scope=scope(measured) if measured else "",
        refused=refused[:SHOWN_QUARANTINED],
        reasons=Counter(row["reason"] for row in refused).most_common(10),
        pictures={name: {theme: base64.b64encode(drawn[theme][name]).decode() for theme in drawn} for name in drawn["light"]},
        command=command(tree),
        settings=yaml.safe_dump({k: v for k, v in tree.items() if k != "config"}, sort_keys=False, allow_unicode=True),
        versions={"python": platform.python_version()} | next(reversed(found.values())).versions,
    )


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
        *line("largest change", "linf_levels", "", f"of 255 grey levels; {known.get('eps_levels')} are allowed", "d"),
        *line("PSNR", "psnr_db", "dB", f"mean of {known.get('protected_images')} images by {known.get('method')}"),
        *line("quarantined", "quarantined", "", f"of {known.get('train_images')} + {known.get('test_images')} images packed", "d"),
    ]
    where = shlex.quote(folder.uri)
    looks = [f"audit     python pipeline/verify.py --run {where}"]
    if folder.is_local and not config.tracking_uri:
        looks.insert(0, f"runs      make ui RUN={where}")
    if folder.exists(f"report/{PAGE}"):
        looks.insert(0, f"report    {folder.uri}/report/{PAGE}")
    return "\n".join(["", *lines, "", *(f"  {look}" for look in looks)])
