"""Gradients against protection: the distance for networks that took no part, and the curve, say what was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.container import ErrorbarContainer

from pipeline.storage.folder import Folder
from tests.benchmarks.curve import draw, places
from tests.benchmarks.held_out import distance, seen_by
from tests.benchmarks.tables import cards, gradients, gradients_per_image
from tests.fixtures import finished_run


def protected(run: Path, seed: int) -> Folder:
    """Return a run with a surrogate and a release of its own."""
    config = replace(finished_run.configuration(run), seed=seed)
    return finished_run.write(run, ("pack", "surrogate", "protect"), config)[1]


def test_a_release_is_near_its_targets_for_its_members_and_less_so_for_a_network_that_took_no_part(tmp_path: Path) -> None:
    """Networks as small and as little trained as these have hardly anything in common."""
    first, second = protected(tmp_path / "first", 0), protected(tmp_path / "second", 1)
    own = seen_by(first, first, 1)
    assert 0 < own < 90 < distance(first, second) < 110
    with pytest.raises(ValueError, match="has the surrogate of"):
        distance(first, first)


def test_the_curve_has_a_point_and_its_relabelled_twin_for_each_card() -> None:
    found = cards("gradients")
    (axis,) = draw(found).axes
    taken = sorted({gradients_per_image(card) for card in found})
    assert [label.get_text() for label in axis.get_xticklabels()] == [f"{count:,}" for count in taken]
    points = [each[0].get_xydata()[0].tolist() for each in axis.containers if isinstance(each, ErrorbarContainer)]
    protected = [next(v for v in card["victims"] if (v["data"], v["countermeasure"]) == ("protected", "none")) for card in found]
    kinds = ("last_accuracy", "relabelled_accuracy")
    assert points == [[place, ours[kind]["mean"]] for place, ours in zip(places(found), protected, strict=True) for kind in kinds]


def test_cards_of_as_many_gradients_stand_beside_each_other() -> None:
    found = cards("gradients")
    several, one = [found[0]] * 3, next(card for card in found if gradients_per_image(card) != gradients_per_image(found[0]))
    left, middle, right, alone = places([*several, one])
    assert left < middle == gradients_per_image(found[0]) < right
    assert right / middle == pytest.approx(middle / left)
    assert alone == gradients_per_image(one)


def test_a_recipe_names_the_checkpoints_that_it_follows() -> None:
    """Targeted adversarial poisoning follows the last one, whatever the settings of the other methods say."""
    rows = [[cell.strip() for cell in line.split("|")[1:6]] for line in gradients().splitlines()]
    assert ["tap", "1", "all", "15", "0"] in rows
    assert ["sep", "10", "all", "15", "0"] in rows
