"""One JSON card per published result, made from finished runs, and the README's table made from the cards.

python tests/benchmarks/publish.py make NAME RUN [RUN ...]    one card from runs that differ in their seed
python tests/benchmarks/publish.py table                      write the table into README.md
"""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from pipeline.config import from_tree
from pipeline.results import Spread, configuration, finished, psnr_values, trials
from pipeline.stage import flatten, to_json
from pipeline.storage import Folder

CARDS = Path(__file__).parent / "cards"
README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- results: made by tests/benchmarks/publish.py -->", "<!-- end of results -->"
WHERE = ("run", "data", "seed", "stages", "workers", "overwrite", "config", "preset")  # settings that decide no figure, or are told apart


def hardware() -> str:
    """Processor, cores, memory and GPU of this machine: make a card where its runs were made."""
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "CPU")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} cores, {model}, {memory:.0f} GiB, {platform.system()}, {gpu}"


def spread(values: list[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation, two decimals."""
    of = Spread.of(values)
    return {"mean": round(of.mean, 2), "std": None if of.deviation is None else round(of.deviation, 2)}


def make(name: str, runs: list[str]) -> dict[str, Any]:
    """The card of some runs of one configuration.

    Raises:
        ValueError: the runs differ in more than their seed, or lack victims.
    """
    folders = [Folder.open(run) for run in runs]
    stages = [finished(folder) for folder in folders]
    trees = [configuration(from_tree(json.loads(f.read("config.json"))), s) for f, s in zip(folders, stages, strict=True)]
    settings = [{k: v for k, v in tree.items() if k not in WHERE} for tree in trees]
    if any(other != settings[0] for other in settings):
        raise ValueError(f"the runs differ in more than their seed: {[flatten(tree) for tree in settings]}")
    rows = [row for folder, stage in zip(folders, stages, strict=True) for row in trials(folder, stage)]
    if not rows:
        raise ValueError("no run has finished its victims")
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["network"], row["countermeasure"], row["data"]), []).append(row)
    return {
        "name": name,
        "preset": trees[0]["preset"],
        "seeds": [tree["seed"] for tree in trees],
        "method": settings[0]["protect"]["method"],
        "budget": f"{settings[0]['protect']['eps_levels']}/255",
        "surrogate": settings[0]["surrogate"]["network"],
        "settings": settings[0],
        "linf_levels": max(stage["protect"].counts["linf_levels"] for stage in stages),
        "psnr_db": spread([sum(values) / len(values) for values in map(psnr_values, folders)]),
        "victims": [
            {
                "network": network,
                "countermeasure": countermeasure,
                "data": data,
                "trainings": len(group),
                **{f"{kind}_accuracy": spread([row[f"{kind}_accuracy"] for row in group]) for kind in ("last", "peak", "relabelled")},
            }
            for (network, countermeasure, data), group in groups.items()
        ],
        "seconds": {stage: spread([s[stage].seconds for s in stages]) for stage in stages[0]},
        "hardware": hardware(),
        "versions": stages[0]["protect"].versions,
    }


def shown(figure: dict[str, float | None]) -> str:
    """`10.3 ± 0.4`."""
    return f"{figure['mean']:.1f}" + (f" ± {figure['std']:.1f}" if figure["std"] is not None else "")


def table() -> str:
    """The README's table: one line per network and countermeasure of each card."""
    lines = [
        "| data, preset | method, budget | victim | countermeasure | n | clean | protected | peak | relabelled | PSNR |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted(CARDS.glob("*.json"), key=lambda path: path.stem):
        card = json.loads(path.read_text())
        victims = {(v["network"], v["countermeasure"], v["data"]): v for v in card["victims"]}
        for (network, countermeasure, data), clean in victims.items():
            if data == "clean":
                ours = victims[network, countermeasure, "protected"]
                lines.append(
                    f"| {card['preset']} | {card['method']}, {card['budget']} | {network} | {countermeasure} | {ours['trainings']} "
                    f"| {shown(clean['last_accuracy'])} | **{shown(ours['last_accuracy'])}** | {shown(ours['peak_accuracy'])} "
                    f"| {shown(ours['relabelled_accuracy'])} | {card['psnr_db']['mean']:.1f} dB |"
                )
    return "\n".join(lines)


def with_table(text: str) -> str:
    """The README with the table as the cards have it."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


def main(arguments: list[str]) -> int:
    """Make a card, or write the table."""
    match arguments:
        case ["make", name, *runs] if runs:
            CARDS.mkdir(exist_ok=True)
            (CARDS / f"{name}.json").write_bytes(to_json(make(name, runs)))
        case ["table"]:
            README.write_text(with_table(README.read_text()))
        case _:
            print(__doc__)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
