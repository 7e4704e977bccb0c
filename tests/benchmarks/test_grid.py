"""Grids of releases: every recipe can be run, and a finished one leaves a card."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from pipeline.config import sweep_grid
from pipeline.config.command_line import parse_as
from pipeline.config.schema import RunConfig
from tests.benchmarks import grid
from tests.benchmarks.grid import Grid
from tests.benchmarks.recipes import GRIDS, Recipe

TINY = [
    *("--pack.max-train-images", "40", "--pack.max-test-images", "20", "--pack.shard-images", "20"),
    *("--surrogate.epochs", "2", "--surrogate.batch-size", "20", "--victim.epochs", "1", "--victim.batch-size", "20"),
    *("--protect.checkpoints", "2"),
]


@pytest.mark.parametrize("name", GRIDS)
def test_recipes_are_settings_of_the_main_job_and_differ(name: str, tmp_path: Path) -> None:
    of = Grid(name, "generated", tmp_path, (0,), math.inf)
    points = set()
    for recipe in GRIDS[name].values():
        config = parse_as(of.command(recipe, 0), RunConfig, "grid")
        (point,) = sweep_grid.grid(config)
        points.add((config.run, point.name))
    assert len(points) == len(GRIDS[name])


@pytest.mark.slow
def test_a_finished_recipe_leaves_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = {"two": Recipe("method=sep-fa-drawn checkpoints=2 steps=1"), "one": Recipe("method=tap steps=1")}
    monkeypatch.setitem(GRIDS, "gradients", recipes)
    given = ["gradients", "--data", "generated", "--work", str(tmp_path / "runs"), "--cards", str(tmp_path), "--seeds", "3", "4", *TINY]
    assert grid.main([*given, "--minutes", "0"]) == grid.TIME_IS_UP
    assert grid.main(given) == 0
    cards = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert {name: card["seeds"] for name, card in cards.items()} == {"gradients-two": [3, 4], "gradients-one": [3, 4]}
    assert all(victim["trainings"] == 2 for card in cards.values() for victim in card["victims"])
