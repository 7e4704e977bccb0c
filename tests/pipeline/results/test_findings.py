"""Findings in sentences: honest about chance, relabelling, countermeasures, other networks and other classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.results.findings import Findings, findings, made_with, scope
from pipeline.results.run_results import RunResults
from pipeline.results.victims import VictimPair, pairs
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Manifest


def pair(
    clean: float,
    protected: float,
    relabelled: float,
    countermeasure: str = "none",
    network: str = "resnet8",
    others: tuple[float | None, float | None] = (None, None),
) -> VictimPair:
    rows = [
        {"network": network, "countermeasure": countermeasure, "data": data, "seed": 0, "accuracy_per_epoch": [last]}
        | {"last_accuracy": last, "peak_accuracy": last, "relabelled_accuracy": again, "other_accuracy": other}
        for data, last, again, other in (("clean", clean, clean, others[0]), ("protected", protected, relabelled, others[1]))
    ]
    return pairs(rows)[0]


def found_of(classes: int, protected: int | None = None, targets: str = "shift", method: str = "sep-fa") -> dict[str, Manifest]:
    counts: dict[str, dict[str, Any]] = {
        "pack": {"classes": [str(i) for i in range(classes)]},
        "protect": {"classes": list(range(protected or classes)), "targets": targets, "method": method, "networks": ["resnet8"]},
    }
    return {stage: Manifest(stage=stage, asked={"inputs": {}}, hash="", counts=counts[stage]) for stage in counts}


def found_in(found: dict[str, Manifest], measured: Sequence[VictimPair], tests: int) -> Findings:
    """Return the findings of a run with these victims, measured on that many test images."""
    results = RunResults(Folder.open("/nowhere"), found)
    vars(results).update(pairs=tuple(measured), measured_images=tests)  # instead of reading them from files
    return findings(results)


def said_of(found: dict[str, Manifest], measured: Sequence[VictimPair], tests: int) -> str:
    return " ".join(found_in(found, measured, tests).sentences)


@pytest.mark.parametrize(
    ("figures", "says", "not_says"),
    [
        ((67.4, 11.2, 14.0), ["56.2 points less", "1.2 points above chance", "next to nothing"], "undo"),
        ((67.4, 10.4, 13.0), ["cannot be told apart from chance"], "undo"),
        ((99.0, 1.0, 95.0), ["below chance", "can undo it, and regains 96 % of what was lost"], "above chance (10"),
        ((67.4, 14.9, 37.8), ["4.9 points above chance", "can undo it, and regains 44 % of what was lost"], "cannot be told apart"),
        ((67.4, 64.0, 64.5), ["no protection to speak of"], "relabelling"),
        ((10.5, 10.0, 12.0), ["comparison says nothing"], "chance (10 %)"),
    ],
)
def test_findings_are_honest(figures: tuple[float, float, float], says: list[str], not_says: str) -> None:
    text = said_of(found_of(10), [pair(*figures)], 10_000)
    for part in says:
        assert part in text
    for part in (not_says, "not protected"):
        assert part not in text


@pytest.mark.parametrize(
    ("targets", "method", "says", "not_says"),
    [
        ("shift", "sep-fa", "knows of the fixed shift of labels can undo it", "aimed at no"),
        ("random-class", "sep-fa", "knows of the fixed map of labels can undo it", "aimed at no"),
        ("per-sample", "sep-fa", "the method aimed at no fixed map of labels", "undo"),
        ("untargeted", "sep-fa", "the method aimed at no fixed map of labels", "undo"),
        ("shift", "noise", "the method aimed at no fixed map of labels", "undo"),
    ],
)
def test_what_relabelling_recovers_is_put_down_to_the_map_that_was_aimed_at(targets: str, method: str, says: str, not_says: str) -> None:
    text = said_of(found_of(10, targets=targets, method=method), [pair(67.4, 14.9, 37.8)], 10_000)
    assert says in text
    assert not_says not in text
    assert "regains 44 % of what was lost" in text


@pytest.mark.parametrize(
    ("after", "says"), [(72.0, "much as before"), (60.0, "learned worse, although none of their images was changed"), (81.0, "better")]
)
def test_other_classes_are_told_of(after: float, says: str) -> None:
    measured = [pair(60.0, 6.0, 8.0, others=(73.0, after))]
    text = said_of(found_of(20, protected=10), measured, 1000)
    assert "60.0 % of the clean test images of the 10 protected classes right; trained on the release, 6.0 %" in text
    assert "On 1,000 test images, that cannot be told apart from chance (5 % among all 20 classes)" in text
    assert "Of the test images of the 10 classes that are not protected, resnet8 gets 73.0 % right" in text
    assert f"{after:.1f} % after training on the release" in text
    assert says in text


def test_a_protection_that_fails_still_tells_of_the_other_classes() -> None:
    text = said_of(found_of(20, protected=10), [pair(60.0, 58.0, 58.0, others=(73.0, 40.0))], 1000)
    assert "no protection to speak of" in text
    assert "33.0 points less: they are learned worse" in text


def test_findings_name_the_countermeasure_that_undoes_the_protection() -> None:
    measured = [pair(67.0, 11.0, 12.0), pair(60.0, 55.0, 55.0, "jpeg-10"), pair(64.0, 13.0, 14.0, "grayscale")]
    text = said_of(found_of(10), measured, 10_000)
    assert "weakest against resnet8, jpeg-10: 55.0 %" in text
    assert "victim networks" not in text
    assert scope(measured) == (
        "These figures speak for resnet8 and for plain training and training under jpeg-10, grayscale, over one seed, which says nothing "
        "about spread, and for no others."
    )


def test_findings_say_how_the_protection_carries_over_to_other_networks() -> None:
    measured = [pair(67.0, 11.0, 12.0), pair(80.0, 30.5, 31.0, network="vgg16-bn"), pair(75.0, 9.5, 12.0, network="resnet18")]
    text = said_of(found_of(10), measured, 10_000)
    assert "crafted with resnet8. Trained on it, 3 victim networks get from 9.5 % (resnet18) to 30.5 % (vgg16-bn) right." in text
    assert "weakest against vgg16-bn: 30.5 %" in text


def test_without_victims_nothing_is_claimed() -> None:
    assert found_in(found_of(10), [], 0).sentences == (
        "No victim is finished yet on both clean and protected images, so this run does not say how well it protects.",
    )


def test_countermeasures_are_sorted_by_what_they_leave_of_the_protection() -> None:
    measured = [
        pair(67.0, 11.0, 12.0),
        pair(64.0, 13.0, 14.0, "grayscale"),
        pair(66.0, 40.0, 41.0, "cutmix"),
        pair(60.0, 55.0, 55.0, "jpeg-10"),
        pair(15.0, 14.0, 15.0, "adversarial-8"),
    ]
    text = said_of(found_of(10), measured, 10_000)
    for sentence in (
        "The protection holds against grayscale (13.0 % of 64.0 %).",
        "It is weakened, but not undone, by cutmix (40.0 % of 66.0 %).",
        "It is undone by jpeg-10 (55.0 %, where clean images treated alike give 60.0 %).",
        "hardly more than guessing: adversarial-8 (15.0 %).",
    ):
        assert sentence in text


def test_countermeasures_that_the_release_was_crafted_for_are_marked() -> None:
    found = found_of(10)
    found["protect"].counts["views"] = ["none", "jpeg-10", "gray"]
    names = ("jpeg-10", "grayscale", "jpeg-30", "grayscale+jpeg-10")
    measured = [pair(66.0, 11.0, 12.0), *(pair(60.0, 55.0, 55.0, name) for name in names)]
    (undone,) = found_in(found, measured, 10_000).countermeasures
    marked = ["jpeg-10 (crafted for; 55.0 %", "grayscale (crafted for; 55.0 %", "jpeg-30 (55.0 %", "grayscale+jpeg-10 (crafted for; 55.0 %"]
    assert all(text in undone for text in marked)


def test_a_countermeasure_is_judged_by_the_network_it_helps_most_and_by_what_that_network_had_before() -> None:
    measured = [
        pair(67.0, 11.0, 12.0),
        pair(70.0, 35.0, 36.0, network="vgg16-bn"),
        pair(66.0, 15.0, 16.0, "cutout"),
        pair(70.0, 38.0, 39.0, "cutout", network="vgg16-bn"),
        pair(70.0, 65.0, 66.0, network="vit-small"),
        pair(60.0, 59.0, 59.0, "cutout", network="vit-small"),
    ]
    text = said_of(found_of(10), measured, 10_000)
    assert "The protection holds against cutout with vgg16-bn (38.0 % of 70.0 %)." in text
    assert "undone by" not in text  # the network that learns from protected images anyway says nothing about a countermeasure


def test_of_a_protection_that_fails_no_countermeasure_is_said_to_undo_it() -> None:
    text = said_of(found_of(10), [pair(67.0, 65.0, 66.0), pair(60.0, 59.0, 59.0, "jpeg-10")], 10_000)
    assert "no protection to speak of" in text
    assert "jpeg-10" not in text


def test_of_many_classes_a_protection_is_judged_by_what_there_is_to_learn() -> None:
    text = said_of(found_of(1000), [pair(9.5, 0.1, 0.5)], 10_000)
    assert "no protection to speak of" not in text
    assert "cannot be told apart from chance (0.1 %)" in text
    undone = said_of(found_of(1000), [pair(9.5, 0.1, 9.2)], 10_000)
    assert "far above chance" in undone
    assert "regains 97 % of what was lost" in undone
    text = said_of(found_of(100), [pair(60.0, 1.0, 3.0), pair(10.5, 9.9, 10.0, "adversarial-8")], 10_000)
    assert "hardly more than guessing" not in text
    assert "It is undone by adversarial-8 (9.9 %, where clean images treated alike give 10.5 %)." in text


def test_a_network_that_learns_nothing_under_a_countermeasure_hides_none_that_does() -> None:
    measured = [
        pair(90.0, 12.0, 13.0),
        pair(70.0, 12.0, 13.0, network="vit-small"),
        pair(75.0, 71.0, 71.0, "adversarial-8"),
        pair(15.0, 14.0, 14.0, "adversarial-8", network="vit-small"),
        pair(16.0, 12.0, 13.0, "bit-depth-2"),
        pair(15.0, 14.0, 14.0, "bit-depth-2", network="vit-small"),
    ]
    text = said_of(found_of(10), measured, 10_000)
    assert "It is undone by adversarial-8 with resnet8 (71.0 %, where clean images treated alike give 75.0 %)." in text
    assert "hardly more than guessing: bit-depth-2 with vit-small (15.0 %)." in text


def test_of_the_networks_one_that_is_undone_goes_before_one_that_has_less_to_lose() -> None:
    measured = [
        pair(67.0, 11.0, 12.0),
        pair(67.0, 11.0, 12.0, network="vit-small"),
        pair(66.0, 40.0, 41.0, "cutmix"),
        pair(30.0, 10.0, 11.0, "cutmix", network="vit-small"),
    ]
    text = said_of(found_of(10), measured, 10_000)
    assert "It is weakened, but not undone, by cutmix with resnet8 (40.0 % of 66.0 %)." in text
    assert "weakest against resnet8, cutmix" in text  # 26 points are more than 20, yet a smaller share of the clean accuracy


def test_weakest_is_where_least_is_lost_and_not_where_most_is_learned() -> None:
    measured = [
        pair(92.0, 12.0, 13.0),
        pair(90.0, 46.0, 47.0, "grayscale"),
        pair(45.0, 43.0, 43.0, "adversarial-8"),
        pair(14.0, 13.9, 14.0, "bit-depth-2"),
    ]
    text = said_of(found_of(10), measured, 10_000)
    assert "weakest against resnet8, adversarial-8: 43.0 % on protected images, 45.0 % on clean ones." in text


def test_a_weak_protection_holds_only_where_as_much_is_lost() -> None:
    measured = [pair(67.0, 40.0, 41.0), pair(60.0, 49.0, 49.0, "cutout"), pair(62.0, 38.0, 39.0, "grayscale")]
    text = said_of(found_of(10), measured, 10_000)
    assert "It is weakened, but not undone, by cutout (49.0 % of 60.0 %)." in text
    assert "The protection holds against grayscale (38.0 % of 62.0 %)." in text


def test_a_countermeasure_under_which_less_is_learned_at_all_weakens_nothing_that_stays_at_chance() -> None:
    text = said_of(found_of(10), [pair(67.0, 11.0, 12.0), pair(30.0, 10.0, 11.0, "adversarial-8")], 10_000)
    assert "The protection holds against adversarial-8 (10.0 % of 30.0 %)." in text
    assert "weakest" not in text


@pytest.mark.parametrize(
    ("networks", "members", "said"),
    [
        (["resnet8", "resnet18"], 4, "with checkpoints of resnet8, resnet18"),
        (["resnet18"], 0, "by noise that resnet18 was trained against"),
        ([], 0, "without any network"),
    ],
)
def test_checkpoints_are_told_of_only_where_some_were_used(networks: list[str], members: int, said: str) -> None:
    found = found_of(10)
    found["protect"].counts.update(networks=networks, members=members)
    assert made_with(RunResults(Folder.open("/nowhere"), found)) == said
