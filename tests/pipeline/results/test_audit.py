"""An audit says what the records of the trials say: who decides, by which figure, at what cost, and what nobody tried."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.results.audit import Audit, audit, card
from pipeline.results.comparison import compare as side_by_side
from pipeline.results.comparison import made
from pipeline.results.run_results import RunResults
from pipeline.storage.folder import Folder
from pipeline.storage.layout import trial_name
from pipeline.training import trial_records
from tests.pipeline.results.test_findings import found_of

Figures = dict[str, tuple[float, float, float]]  # by countermeasure: from the originals, from the release, and that relabelled
PLAIN = {"none": (94.0, 10.0, 12.0)}


def audit_of(
    folder: Path,
    figures: Figures,
    wanted: Sequence[str] = ("none",),
    seeds: Sequence[int] = (0, 1, 2),
    networks: Sequence[str] = ("resnet8",),
    unsuited: dict[str, str] | None = None,
    **counts: Any,
) -> Audit:
    """Audit a run whose trials have these figures, each seed a point better than the one before; adversaries train for twice as long."""
    run, rows = Folder.open(str(folder)), []
    for network in networks:
        for name, (clean, protected, relabelled) in figures.items():
            for seed in seeds:
                for data, last, again in (("clean", clean, clean), ("protected", protected, relabelled)):
                    trial = {"network": network, "countermeasure": name, "data": data, "seed": seed}
                    hours = {"seconds": 3600.0 * (1 if name == "none" else 2), "resources": {"cpus": 2}}
                    trial_records.write(run.child("victim"), trial_name(network, data, name, seed), {**trial, **hours, "made_from": ""})
                    accuracies = {
                        f"{kind}_accuracy": value + seed for kind, value in (("last", last), ("peak", last), ("relabelled", again))
                    }
                    rows.append({**trial, **accuracies, "other_accuracy": None, "accuracy_per_epoch": [last]})
    found = found_of(10)
    found["protect"].counts.update({"eps_levels": 8, "protected": 500, **counts})
    found["pack"].shards.update({"train": [], "test": []})
    results = RunResults(run, found, rows, (), {"victim": {"networks": list(networks), "seeds": list(seeds)}})
    vars(results).update(measured_images=10_000)  # instead of counting them in a file
    return audit(results, wanted, unsuited or {})


def test_the_worst_adversary_decides_with_figure_cost_and_spread(tmp_path: Path) -> None:
    found = audit_of(tmp_path, {**PLAIN, "jpeg-10": (84.0, 83.0, 83.0), "gaussian-blur": (90.0, 12.0, 13.0), "cutout": (90.0, 60.0, 60.0)})
    assert found.label == "undone"
    assert found.sentences == (
        "Undone by jpeg-10: 84.0 ± 1.0 % from the release, 85.0 ± 1.0 % from the originals treated alike (last epoch, n = 3), for "
        "2.00 times a plain training (4 CPU-hours), no clean images.",
        "Of 4 tried: undone by 1, weakened by 1, holds against 2.",
    )
    assert "\n" not in found.line


def test_who_gets_the_most_decides_and_what_undoes_it_for_least_is_named_besides(tmp_path: Path) -> None:
    """An early stop that loses nothing has learned little."""
    found = audit_of(tmp_path, {"none": (94.0, 20.0, 70.0), "jpeg-10": (64.0, 63.0, 63.0), "early-stop": (25.0, 24.0, 30.0)})
    assert found.label == "weakened"
    assert found.sentences[0].startswith("Holds in part against plain training with the predictions renamed: 71.0 ± 1.0 % from the release")
    assert found.sentences[1] == "Undone for least by jpeg-10: 64.0 ± 1.0 of 65.0 ± 1.0 %, 2.00 times a plain training (4 CPU-hours)."


def test_what_holds_holds_against_what_was_tried_alone(tmp_path: Path) -> None:
    wanted = ("none", "gaussian-blur", "ueraser", "pretrained")
    found = audit_of(tmp_path, {**PLAIN, "gaussian-blur": (90.0, 12.0, 13.0)}, wanted, unsuited={"pretrained": "needs the extra"})
    assert found.label == "holds"
    assert found.line.startswith("Holds against all 2 adversaries that were tried; the strongest, gaussian-blur, gets 13.0 ± 1.0 % from")
    assert found.line.endswith("Not tried, or not to the end: ueraser, pretrained.")
    assert found.left == {"ueraser": "0 of 3 trainings done", "pretrained": "needs the extra"}
    assert card(found)["not_tried"] == found.left


def test_the_relabelled_figure_speaks_where_renaming_wins_back_much(tmp_path: Path) -> None:
    found = audit_of(tmp_path, {"none": (94.0, 4.0, 93.0), "grayscale": (90.0, 10.0, 13.0)})
    assert found.line.startswith("Does not hold against plain training with the predictions renamed: 94.0 ± 1.0 % from the release")
    assert "(relabelled, n = 3)" in found.line
    assert "no clean images, the method's map of classes." in found.line
    entry = card(found)["adversaries"]["none"]
    assert (entry["speaks"], entry["relabelled_accuracy"], entry["last_accuracy"]["mean"]) == (
        "relabelled",
        {"mean": 94.0, "std": 1.0},
        5.0,
    )
    assert "a few labelled images" in audit_of(tmp_path, {"none": (94.0, 4.0, 93.0)}, targets="random-class").line


def test_an_adversary_is_judged_by_what_it_learns_however_weak_the_protection_is(tmp_path: Path) -> None:
    found = audit_of(tmp_path, {"none": (94.0, 50.0, 51.0), "gaussian-blur": (90.0, 55.0, 56.0)})
    assert found.line.startswith("Weakened by gaussian-blur: ")
    assert "Of 2 tried: undone by 0, weakened by 2, holds against 0." in found.line
    alone = audit_of(tmp_path / "alone", {"none": (94.0, 50.0, 51.0)})
    assert alone.line.startswith("Holds in part against plain training: 51.0 ± 1.0 % from the release")


def test_clean_pictures_are_counted_and_do_not_decide(tmp_path: Path) -> None:
    found = audit_of(tmp_path, PLAIN)
    helped = audit_of(tmp_path, {**PLAIN, "grayscale": (90.0, 88.0, 88.0)})
    given = [each if each.name == "none" else type(each)(**{**vars(each), "clean_pictures": 50}) for each in helped.tried]
    both = Audit(helped.results, tuple(given), {})
    assert both.label == found.label == "holds"
    assert both.line.endswith("With clean images besides: undone by grayscale.")
    assert card(both)["adversaries"]["grayscale"]["clean_pictures"] == 50


def test_where_even_the_originals_teach_nothing_nothing_is_said(tmp_path: Path) -> None:
    found = audit_of(tmp_path, {"none": (12.0, 10.0, 11.0)})
    assert (found.label, found.worst) == ("not measured", None)
    assert found.line.startswith("Not measured: ")
    assert card(found)["decided_by"] is None


@pytest.mark.parametrize(("protected", "relabelled"), [(10.0, 40.0), (12.0, 40.0), (8.0, 8.0)])
def test_a_victim_that_learns_nothing_from_the_originals_decides_nothing(tmp_path: Path, protected: float, relabelled: float) -> None:
    """Then the release can take nothing from it, and a share of that is no number."""
    found = audit_of(tmp_path, {"none": (10.0, protected, relabelled)}, seeds=(0,))
    assert found.label == "not measured"
    assert made(side_by_side([found.results])).lines[0][2] == "–"


@pytest.mark.parametrize(
    ("small", "network"),
    [({"protected": 60.0}, "vit-small"), ({"clean": 25.0, "protected": 24.0}, "resnet8"), ({"clean": 11.5, "protected": 50.0}, "resnet8")],
    ids=["it gets more", "it loses little of little", "it learns nothing from the originals"],
)
def test_the_network_with_which_it_gets_the_most_speaks_for_an_adversary(tmp_path: Path, small: dict[str, float], network: str) -> None:
    found = audit_of(tmp_path, {"none": (94.0, 40.0, 40.0)}, networks=("resnet8", "vit-small"))
    rows = [dict(row) for row in found.results.trials]
    for row in rows:
        if row["network"] == "vit-small":
            row["last_accuracy"] = row["relabelled_accuracy"] = small.get(row["data"], 94.0)
    results = RunResults(found.results.folder, found.results.manifests, rows, (), found.results.victim_asked)
    vars(results).update(measured_images=10_000)
    (tried,) = audit(results, ("none",), {}).tried
    assert tried.pair.clean.network == network
    assert tried.speaks.mean == (small["protected"] if network == "vit-small" else 41.0)


@pytest.mark.parametrize(("resources", "unit", "hours"), [({"gpus": 0.5}, "GPU-hours", 0.5), ({}, "hours", 1.0)])
def test_hours_are_of_what_the_training_ran_on(tmp_path: Path, resources: dict[str, float], unit: str, hours: float) -> None:
    found = audit_of(tmp_path, {**PLAIN, "grayscale": (90.0, 10.0, 13.0)}, seeds=(0,))
    record = {"seconds": 3600.0, "resources": resources, "made_from": ""}
    trial_records.write(found.results.folder.child("victim"), trial_name("resnet8", "protected", "none", 0), record)
    plain, other = audit(found.results, ("none",), {}).tried
    assert (plain.cost.unit, plain.cost.hours, plain.cost.times) == (unit, hours, 1.0)
    assert (other.cost.unit, other.cost.times) == ("CPU-hours", None)  # which are nothing to compare with GPU-hours
