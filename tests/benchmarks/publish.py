"""One JSON card per published result, written from finished runs, and the tables of the pages written from the cards.

python -m tests.benchmarks.publish make NAME RUN [RUN ...]    one card from runs that differ in their seed or their victims
python -m tests.benchmarks.publish all                        write every table
python -m tests.benchmarks.publish highlights                 write the results of README.md
python -m tests.benchmarks.publish TABLE                      write one table of docs/results.md: `table`, or, from the cards so named,
    targets              kinds of targets
    transfer             victim networks
    kernels              arithmetic of crafting
    countermeasures      everything done against one release
    methods              releases by several methods, side by side
    gradients            recipes by what they cost
    noise                noise of a class, by what it is made through
    photos               photographs at their own size
    detection            detectors of several releases, from detection.json
"""

from __future__ import annotations

import json
import sys
from typing import Any

from pipeline.config.marks import marked, without
from pipeline.config.presets import from_tree
from pipeline.config.schema import RunConfig, VictimConfig
from pipeline.results.machine import hardware
from pipeline.results.run_results import RunResults
from pipeline.results.victims import Row, Spread
from pipeline.storage.records import flatten, to_json
from pipeline.storage.run import open_run
from tests.benchmarks import tables
from tests.benchmarks.tables import TABLES, Card, with_table

# Settings that do not change a figure, or that the card lists one by one.
WHERE = ("run", "data", "seed", "preset", *marked(RunConfig))


def spread(values: list[float]) -> dict[str, float | None]:
    """Return mean and sample standard deviation, with more decimals than are shown: rounded twice, they would differ from reports."""
    of = Spread.of(values)
    return {"mean": round(of.mean, 4), "std": None if of.deviation is None else round(of.deviation, 4)}


def make(name: str, runs: list[str]) -> Card:
    """Return the card of runs of one configuration, or of runs that trained different victims on the same release.

    Raises:
        ValueError: the runs differ in more than their seed and victims, lack victims, or their victims cannot be combined.
    """
    read = [RunResults.read(open_run(run)) for run in runs]
    stages = [results.manifests for results in read]
    trees = [results.configuration(from_tree(json.loads(results.folder.read("config.json")))) for results in read]
    settings = [without(tree, (*WHERE, "victim")) for tree in trees]
    if any(other != settings[0] for other in settings):
        raise ValueError(f"the runs differ in more than their seed and victims: {[flatten(tree) for tree in settings]}")
    unfinished = [run for run, found in zip(runs, stages, strict=True) if "victim" not in found]
    if unfinished:
        raise ValueError(f"these runs have not finished their victims: {', '.join(unfinished)}")
    victims = [tree["victim"] for i, tree in enumerate(trees) if tree["victim"] not in [earlier["victim"] for earlier in trees[:i]]]
    # Runs that share a release or an earlier stage hold copies of it, which count once.
    made = {(stage, manifest.digest): (results, manifest) for results in read for stage, manifest in results.manifests.items()}
    releases = [results for (stage, _), (results, _) in made.items() if stage == "protect"]
    released = [results.manifests["protect"].counts for results in releases]
    counts = stages[0]["protect"].counts
    return {
        "name": name,
        "preset": trees[0]["preset"],
        "seeds": sorted({tree["seed"] for tree in trees}),
        **{key: counts[key] for key in ("method", "targets", "precision") if key in counts},
        "budget": str(read[0].budget),
        "surrogate": ", ".join(settings[0]["surrogate"]["networks"]),
        "classes": len(stages[0]["pack"].counts["classes"]),
        "protected_classes": len(counts["classes"]),
        "settings": settings[0] | {"victim": victims[0] if len(victims) == 1 else victims},
        "linf_levels": max(stage["protect"].counts["linf_levels"] for stage in stages),
        # For methods that train against their noise: whether they converged, or the rounds ran out.
        **{name: spread([each[name] for each in released]) for name in ("noise_rounds", "noise_error") if name in counts},
        "psnr_db": spread([float(results.samples.measures["psnr_db"].mean(dtype=float)) for results in releases]),
        "gradient_cosines": [  # of the first release; between pairs of checkpoints, the network None: of several networks' last ones
            {"network": alike.network, "members": alike.labels, "mean": round(alike.mean, 3)} for alike in read[0].similarities
        ],
        "victims": trained(read, trees),
        "seconds": {stage: spread([m.seconds for (made_by, _), (_, m) in made.items() if made_by == stage]) for stage in stages[0]},
        "hardware": hardware(),
        "versions": stages[0]["protect"].versions,
    }


def trained(read: list[RunResults], trees: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return accuracies per network, countermeasure and kind of data over the trainings of all runs.

    Raises:
        ValueError: a training would count twice, or trainings that count as one had different settings.
    """
    groups: dict[tuple[str, str, str], list[Row]] = {}
    how: dict[str, dict[str, Any]] = {}
    seen = set()
    for results, tree in zip(read, trees, strict=True):
        training = {n: value for n, value in without(tree["victim"], marked(VictimConfig)).items() if not isinstance(value, list)}
        for row in results.trials:
            network, countermeasure, data = (row[key] for key in ("network", "countermeasure", "data"))
            which = (results.manifests["pack" if data == "clean" else "protect"].digest, network, countermeasure, row["seed"])
            if which in seen:
                raise ValueError(f"{network}, {countermeasure}, seed {row['seed']} was trained on the same {data} images in two runs")
            if how.setdefault(network, training) != training:
                raise ValueError(f"{network} was trained with different settings: {how[network]} and {training}")
            seen.add(which)
            groups.setdefault((network, countermeasure, data), []).append(row)
    return [
        {
            "network": network,
            "countermeasure": countermeasure,
            "data": data,
            "trainings": len(group),
            **{f"{kind}_accuracy": spread([row[f"{kind}_accuracy"] for row in group]) for kind in ("last", "peak", "relabelled")},
            "other_accuracy": spread(others) if None not in (others := [row["other_accuracy"] for row in group]) else None,
        }
        for (network, countermeasure, data), group in groups.items()
    ]


def main(arguments: list[str]) -> int:
    """Make a card, or write a table."""
    match arguments:
        case ["make", name, *runs] if runs:
            tables.CARDS.mkdir(exist_ok=True)
            (tables.CARDS / f"{name}.json").write_bytes(to_json(make(name, runs)))
        case [name] if name in (*TABLES, "all"):
            try:
                for each in TABLES if name == "all" else [name]:
                    page = tables.page(each)
                    page.write_text(with_table(page.read_text(), each))
            except ValueError as error:
                print(f"publish.py: {error}", file=sys.stderr)
                return 1
        case _:
            print(__doc__)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
