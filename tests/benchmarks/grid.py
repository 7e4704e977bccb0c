"""Releases by many recipes at `cifar10-small`, each with several seeds, and a card for each recipe that all seeds have finished.

python -m tests.benchmarks.grid GRID --data FOLDER [--seeds 0 1 2] [--minutes N] [FLAGS of run.py]

GRID is `gradients` or `noise`. Exit codes: 0 done, 1 a run failed, 3 the time is up: the same command goes on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config import sweep_grid
from pipeline.config.command_line import parse_as
from pipeline.config.schema import RunConfig
from pipeline.storage.records import to_json
from tests import ROOT
from tests.benchmarks import publish, tables
from tests.benchmarks.recipes import GRIDS, Recipe

TIME_IS_UP = 3


@dataclass(frozen=True)
class Grid:
    """One grid at work.

    Attributes:
        name: a key of `GRIDS`.
        data: images, as `--data` of the main job takes them.
        work: folder for the runs.
        seeds: one run each, with a surrogate, a release and victims of its own.
        end: time on the monotonic clock after which nothing begins.
        cards: folder for the cards.
        flags: further flags of `run.py`, for all recipes.
    """

    name: str
    data: str
    work: Path
    seeds: Sequence[int]
    end: float
    cards: Path = tables.CARDS
    flags: Sequence[str] = field(default=())

    def command(self, recipe: Recipe, seed: int) -> list[str]:
        """Return the flags of `run.py` for one release: recipes with the same views share images, surrogate and clean victims."""
        folder = f"seed{seed}" + ("" if recipe.views == ("none",) else f"-{'-'.join(recipe.views)}")
        return [
            *("--preset", "cifar10-small", "--data", self.data, "--run", str(self.work / folder), "--seed", str(seed)),
            *("--stages", "pack", "surrogate", "protect", "victim", "--executor", "local", "--tracking-uri", "none"),
            *("--views", *recipe.views, "--victim.countermeasures", *recipe.countermeasures, *self.flags, "--sweep", *recipe.sweep),
        ]

    def run(self) -> int:
        """Make what is missing, recipe by recipe, and return the exit code."""
        failed = False
        for name, recipe in GRIDS[self.name].items():
            codes = list(self._codes(recipe))
            if TIME_IS_UP in codes:
                return TIME_IS_UP
            failed = failed or any(codes)
            if not any(codes):
                self._write(f"{self.name}-{name}", recipe)
        return int(failed)

    def _codes(self, recipe: Recipe) -> Iterator[int]:
        """Run one recipe with each seed until the time is up, and yield exit codes."""
        for seed in self.seeds:
            left = (self.end - time.monotonic()) / 60
            minutes = () if left == float("inf") else ("--minutes", f"{left:.3f}")
            yield (
                TIME_IS_UP
                if left <= 0
                else subprocess.run(
                    [sys.executable, str(ROOT / "pipeline" / "run.py"), *minutes, *self.command(recipe, seed)], check=False
                ).returncode
            )

    def _write(self, name: str, recipe: Recipe) -> None:
        """Write the card of a recipe that all seeds have finished."""
        runs = []
        for seed in self.seeds:
            config = parse_as(self.command(recipe, seed), RunConfig, "grid")
            runs.append(f"{config.run}/sweep/{sweep_grid.grid(config)[0].name}")
        self.cards.mkdir(parents=True, exist_ok=True)
        (self.cards / f"{name}.json").write_bytes(to_json(publish.make(name, runs)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, and run a grid."""
    parser = argparse.ArgumentParser("grid", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("grid", choices=GRIDS)
    parser.add_argument("--data", required=True, help="CIFAR-10 as Parquet files")
    parser.add_argument("--work", type=Path, default=Path("runs/grid"), help="folder for the runs")
    parser.add_argument("--cards", type=Path, default=tables.CARDS, help="folder for the cards")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing after so many minutes")
    given, flags = parser.parse_known_args(arguments)
    return Grid(given.grid, given.data, given.work, given.seeds, time.monotonic() + 60 * given.minutes, given.cards, flags).run()


if __name__ == "__main__":
    sys.exit(main())
