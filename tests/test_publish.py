"""Published results: the README shows what the cards say, and the cards say what the runs measured."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import to_tree
from pipeline.shards import read_table
from pipeline.stage import to_json
from tests import finished_run
from tests.benchmarks.publish import CARDS, README, make, with_table


def test_readme_shows_the_cards() -> None:
    assert list(CARDS.glob("*.json"))
    text = README.read_text()
    assert with_table(text) == text, "run: python tests/benchmarks/publish.py table"


@pytest.mark.parametrize("path", sorted(CARDS.glob("*.json")), ids=lambda path: path.stem)
def test_card_says_how_it_was_measured(path: Path) -> None:
    card = json.loads(path.read_text())
    for field in ("hardware", "versions", "settings", "seeds", "psnr_db", "seconds"):
        assert card[field], field
    assert card["linf_levels"] <= int(card["budget"].split("/")[0])
    assert {victim["data"] for victim in card["victims"]} == {"clean", "protected"}


def test_card_is_made_of_what_the_runs_measured(tmp_path: Path) -> None:
    config, folder = finished_run.write(tmp_path / "run")
    folder.write("config.json", to_json(to_tree(config)))
    card = make("name", [config.run])
    rows = [row for row in read_table(folder.child("victim"), "results.parquet").to_pylist() if row["data"] == "protected"]
    (victim,) = (victim for victim in card["victims"] if victim["data"] == "protected")
    values = [row["last_accuracy"] for row in rows]
    assert victim["trainings"] == len(rows) == 2
    assert victim["last_accuracy"] == {"mean": round(statistics.fmean(values), 2), "std": round(statistics.stdev(values), 2)}
    assert card["budget"] == "8/255"
    assert card["linf_levels"] <= 8


def test_runs_that_differ_in_more_than_their_seed_make_no_card(tmp_path: Path) -> None:
    runs = []
    for steps in (1, 2):
        run = tmp_path / str(steps)
        config = finished_run.configuration(run)
        config, folder = finished_run.write(run, config=replace(config, protect=replace(config.protect, steps=steps)))
        folder.write("config.json", to_json(to_tree(config)))
        runs.append(config.run)
    with pytest.raises(ValueError, match="differ in more than their seed"):
        make("name", runs)
