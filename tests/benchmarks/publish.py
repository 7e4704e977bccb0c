"""One JSON card per published result, made from finished runs, and the README's table made from the cards.

python tests/benchmarks/publish.py make NAME RUN [RUN ...]    one card from runs that differ in their seed, or in what victims they trained
python tests/benchmarks/publish.py table                      write the table into README.md
python tests/benchmarks/publish.py targets                    the same for cards named targets-...: kinds of targets
python tests/benchmarks/publish.py transfer                   the same for cards named transfer-...: victim networks
python tests/benchmarks/publish.py kernels                    the same for cards named kernels-...: arithmetic of crafting
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from pipeline.command_line import from_tree
from pipeline.reproduction.machine import hardware
from pipeline.results import Finished, Spread, budget, configuration, finished, psnr_values, trials
from pipeline.stage import flatten, to_json
from pipeline.storage import Folder
from sep.methods import METHODS
from sep.objective import Targets

CARDS = Path(__file__).parent / "cards"
README = Path(__file__).parents[2] / "README.md"
Card = dict[str, Any]
KINDS = ("targets", "transfer", "kernels")  # cards whose names begin so have a table of their own
# Settings that decide no figure, or are told apart.
WHERE = ("run", "data", "add", "seed", "stages", "workers", "keep_going", "overwrite", "config", "preset")


def spread(values: list[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation, two decimals."""
    of = Spread.of(values)
    return {"mean": round(of.mean, 2), "std": None if of.deviation is None else round(of.deviation, 2)}


def make(name: str, runs: list[str]) -> Card:
    """The card of some runs of one configuration, or of runs that trained different victims on one and the same release.

    Raises:
        ValueError: the runs differ in more than their seed and victims, lack victims, or victims of theirs cannot be put together.
    """
    folders = [Folder.open(run) for run in runs]
    stages = [finished(folder) for folder in folders]
    trees = [configuration(from_tree(json.loads(f.read("config.json"))), s) for f, s in zip(folders, stages, strict=True)]
    settings = [{k: v for k, v in tree.items() if k not in (*WHERE, "victim")} for tree in trees]
    if any(other != settings[0] for other in settings):
        raise ValueError(f"the runs differ in more than their seed and victims: {[flatten(tree) for tree in settings]}")
    unfinished = [run for run, found in zip(runs, stages, strict=True) if "victim" not in found]
    if unfinished:
        raise ValueError(f"these runs have not finished their victims: {', '.join(unfinished)}")
    victims = [tree["victim"] for i, tree in enumerate(trees) if tree["victim"] not in [earlier["victim"] for earlier in trees[:i]]]
    # Runs that share a release, or an earlier stage, hold copies of it: what was made once counts once.
    made = {(stage, found[stage].digest): (folder, found[stage]) for folder, found in zip(folders, stages, strict=True) for stage in found}
    releases = {digest: folder for (stage, digest), (folder, _) in made.items() if stage == "protect"}
    counts = stages[0]["protect"].counts
    return {
        "name": name,
        "preset": trees[0]["preset"],
        "seeds": sorted({tree["seed"] for tree in trees}),
        **{key: counts[key] for key in ("method", "targets")},
        "budget": str(budget(stages[0])),
        "surrogate": ", ".join(settings[0]["surrogate"]["networks"]),
        "classes": len(stages[0]["pack"].counts["classes"]),
        "protected_classes": len(counts["classes"]),
        "settings": settings[0] | {"victim": victims[0] if len(victims) == 1 else victims},
        "linf_levels": max(stage["protect"].counts["linf_levels"] for stage in stages),
        "psnr_db": spread([sum(values) / len(values) for values in map(psnr_values, releases.values())]),
        "victims": trained(folders, stages, trees),
        "seconds": {stage: spread([m.seconds for (made_by, _), (_, m) in made.items() if made_by == stage]) for stage in stages[0]},
        "hardware": hardware(),
        "versions": stages[0]["protect"].versions,
    }


def trained(folders: list[Folder], stages: list[Finished], trees: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Accuracies per network, countermeasure and kind of data over the trainings of all runs.

    Raises:
        ValueError: a training would count twice, or trainings that count as one had different settings.
    """
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    how: dict[str, dict[str, Any]] = {}
    seen = set()
    for folder, found, tree in zip(folders, stages, trees, strict=True):
        training = {name: value for name, value in tree["victim"].items() if not isinstance(value, list)}
        for row in trials(folder, found):
            network, countermeasure, data = (row[key] for key in ("network", "countermeasure", "data"))
            which = (found["pack" if data == "clean" else "protect"].digest, network, countermeasure, row["seed"])
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


def cards(kind: str) -> list[Card]:
    """The cards of one table, by name; `table` has those of no other."""
    every = [json.loads(path.read_text()) for path in sorted(CARDS.glob("*.json"), key=lambda path: path.stem)]
    named = {other: [card for card in every if card["name"].startswith(f"{other}-")] for other in KINDS}
    return named[kind] if kind in named else [card for card in every if not any(card in own for own in named.values())]


def pairs(card: Card) -> list[tuple[Card, Card]]:
    """The same victim on clean and on protected images."""
    victims = {(v["network"], v["countermeasure"], v["data"]): v for v in card["victims"]}
    return [(clean, victims[network, name, "protected"]) for (network, name, data), clean in victims.items() if data == "clean"]


def shown(figure: dict[str, float | None]) -> str:
    """`10.3 ± 0.4`."""
    return f"{figure['mean']:.1f}" + (f" ± {figure['std']:.1f}" if figure["std"] is not None else "")


def measured(victim: Card, *, bold: bool = False) -> str:
    """Accuracy after the last epoch, and, where not all classes are protected, that on the others."""
    last, other = shown(victim["last_accuracy"]), victim.get("other_accuracy")  # cards of earlier versions lack it
    return (f"**{last}**" if bold else last) + (f" (others {shown(other)})" if other else "")


def setting(card: Card, quote: str = "") -> str:
    """The preset, and what a card has besides the usual: part of the classes protected, other targets."""
    said = [f"{quote}{card['preset']}{quote}"]
    if card.get("protected_classes") != card.get("classes"):
        said.append(f"{card['protected_classes']} of {card['classes']} classes")
    if card.get("targets", "shift") != "shift" and METHODS[card["method"]].targets:
        said.append(f"{card['targets']} targets")
    return ", ".join(said)


def origin(card: Card) -> str:
    """What a release was made with, for the line above a table."""
    return f"Surrogate {card['surrogate']}, preset {setting(card, '`')}, {card['method']} at {card['budget']}"


def rows(header: str, lines: list[str]) -> str:
    """A table in Markdown."""
    return "\n".join([f"| {header} |", "|" + "---|" * len(header.split("|")), *(f"| {line} |" for line in lines)])


def results() -> str:
    """One line per network and countermeasure of each card."""
    return rows(
        "data, preset | method, budget | victim | countermeasure | n | clean | protected | peak | relabelled | PSNR",
        [
            f"{setting(card)} | {card['method']}, {card['budget']} | {clean['network']} | {clean['countermeasure']} | {ours['trainings']} "
            f"| {measured(clean)} | {measured(ours, bold=True)} | {shown(ours['peak_accuracy'])} | {shown(ours['relabelled_accuracy'])} "
            f"| {card['psnr_db']['mean']:.1f} dB"
            for card in cards("table")
            for clean, ours in pairs(card)
        ],
    )


def targets() -> str:
    """One line per kind of targets, under what they have in common."""
    order, found = get_args(Targets), cards("targets")
    common = {origin({**card, "targets": "shift"}): None for card in found}
    table = rows(
        "targets | n | clean | protected | peak | relabelled | PSNR",
        [
            f"{', '.join([card['targets'], *victim])} | {ours['trainings']} | {measured(clean)} | {measured(ours, bold=True)} "
            f"| {shown(ours['peak_accuracy'])} | {shown(ours['relabelled_accuracy'])} | {card['psnr_db']['mean']:.1f} dB"
            for card in sorted(found, key=lambda card: order.index(card["targets"]))
            for clean, ours in pairs(card)
            for victim in ([clean["network"], clean["countermeasure"]] if len(pairs(card)) > 1 else [],)
        ],
    )
    return "\n\n".join([*(f"{line}." for line in common), table])


def transfer() -> str:
    """For each kind of release the victim networks, under what it was made with."""
    lines: dict[str, list[str]] = {}
    for card in cards("transfer"):
        lines.setdefault(origin(card), []).extend(
            f"{clean['network']}{'' if clean['countermeasure'] == 'none' else ', ' + clean['countermeasure']} | {schedule(card, clean)} "
            f"| {ours['trainings']} | {measured(clean)} | {measured(ours, bold=True)} | {shown(ours['relabelled_accuracy'])}"
            for clean, ours in pairs(card)
        )
    header = "victim | epochs, batch | n | clean | protected | relabelled"
    return "\n\n".join([part for line, found in lines.items() for part in (f"{line}.", rows(header, found))] or [rows(header, [])])


def schedule(card: Card, victim: Card) -> str:
    """How long and in what batches a victim was trained."""
    sections = card["settings"]["victim"]
    section = next(each for each in (sections if isinstance(sections, list) else [sections]) if victim["network"] in each["networks"])
    return f"{section['epochs']}, {section['batch_size']}"


def kernels() -> str:
    """One line per way to compute the same gradients."""
    return rows(
        "kernels | n | clean | protected | peak | relabelled",
        [
            f"{card['settings']['protect']['kernels']} | {ours['trainings']} | {measured(clean)} | {measured(ours, bold=True)} "
            f"| {shown(ours['peak_accuracy'])} | {shown(ours['relabelled_accuracy'])}"
            for card in cards("kernels")
            for clean, ours in pairs(card)
        ],
    )


TABLES: dict[str, Callable[[], str]] = {"table": results, "targets": targets, "transfer": transfer, "kernels": kernels}


def with_table(text: str, name: str = "table") -> str:
    """The README with one table as the cards have it.

    Raises:
        ValueError: it has no place for the table.
    """
    word = "results" if name == "table" else name
    begin, end = f"<!-- {word}: made by tests/benchmarks/publish.py -->", f"<!-- end of {word} -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"README.md has no place for this table: put the lines {begin} and {end} where it shall stand")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{TABLES[name]()}\n{end}{rest.split(end)[1]}"


def main(arguments: list[str]) -> int:
    """Make a card, or write a table."""
    match arguments:
        case ["make", name, *runs] if runs:
            CARDS.mkdir(exist_ok=True)
            (CARDS / f"{name}.json").write_bytes(to_json(make(name, runs)))
        case [name] if name in TABLES:
            try:
                README.write_text(with_table(README.read_text(), name))
            except ValueError as error:
                print(f"publish.py: {error}", file=sys.stderr)
                return 1
        case _:
            print(__doc__)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
