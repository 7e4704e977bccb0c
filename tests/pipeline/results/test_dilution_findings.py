"""Findings on releases with a clean share, which are compared with that share alone."""

from __future__ import annotations

import pytest

from pipeline.results.victims import VictimPair, pairs
from tests.pipeline.results.test_findings import found_in, found_of, pair

RELEASE = pair(57.0, 19.8, 25.0)


def alone(accuracy: float, countermeasure: str = "clean-only-10", network: str = "resnet8") -> VictimPair:
    return pair(accuracy, accuracy, accuracy, countermeasure, network)


def on_diluted(*measured: VictimPair, tests: int = 5000) -> list[str]:
    """Return the sentences on dilutions, after checking that no other sentence speaks of them."""
    said = found_in(found_of(10), [RELEASE, *measured], tests)
    found = [sentence for sentence in said.sentences if sentence.startswith("If an adversary also has")]
    assert list(said.countermeasures[-len(found) :]) == found
    for sentence in set(said.sentences).difference(found):
        assert "dilution" not in sentence
        assert "clean-only" not in sentence
    return found


@pytest.mark.parametrize(
    ("mixed", "share", "says"),
    [
        (41.5, 41.0, "the protected images add next to nothing"),
        (39.0, 41.0, "the protected images add next to nothing"),
        (27.5, 41.0, "the protected images take 13.5 points away"),
        (46.0, 41.0, "the protected images add 5.0 of the 16.0 points that they would add if they were clean"),
        (
            55.0,
            41.0,
            "add 14.0 of the 16.0 points that they would add if they were clean, so beside clean images their protection is undone",
        ),
        (53.0, 41.0, "the protected images add 12.0 of the 16.0 points that they would add if they were clean"),
        (54.5, 54.0, "nothing can be said of the protected images"),
        (30.0, 54.0, "the protected images take 24.0 points away"),
    ],
)
def test_a_dilution_is_held_against_its_clean_share(mixed: float, share: float, says: str) -> None:
    (said,) = on_diluted(pair(57.0, mixed, mixed, "dilution-10"), alone(share))
    assert said.startswith(
        f"If an adversary also has 10 % of the protected images clean (dilution-10), resnet8 gets {mixed} % right, "
        f"compared with {share} % from those clean images alone and 57.0 % from all images clean: "
    )
    assert said.endswith(f"{says}.")


def test_without_its_control_nothing_is_said_of_what_protected_images_add() -> None:
    said = on_diluted(pair(57.0, 53.4, 53.4, "dilution-50"), alone(41.0, "clean-only-10"), alone(52.0, "clean-only-50", "vgg16-bn"))
    assert said == [
        "If an adversary also has 50 % of the protected images clean (dilution-50), resnet8 gets 53.4 % right; "
        "how much of that those clean images give alone is not known without clean-only-50 over the same seeds."
    ]


def test_countermeasures_besides_belong_to_the_control_as_well() -> None:
    name, control = "cutmix+dilution-20", "cutmix+clean-only-20"
    (said,) = on_diluted(pair(50.0, 40.0, 40.0, name), alone(39.5, "clean-only-20"))
    assert said.endswith(f"without {control} over the same seeds.")
    (said,) = on_diluted(pair(50.0, 40.0, 40.0, name), alone(39.5, control))
    assert "20 % of the protected images clean (cutmix+dilution-20)" in said
    assert said.endswith("add next to nothing.")


def test_of_several_networks_that_one_speaks_to_which_protected_images_add_most() -> None:
    measured = [pair(57.0, 42.0, 42.0, "dilution-10"), pair(70.0, 60.0, 60.0, "dilution-10", "vgg16-bn")]
    (said,) = on_diluted(*measured, alone(41.0), alone(45.0, network="vgg16-bn"))
    assert "vgg16-bn gets 60.0 % right, compared with 45.0 % from those clean images alone" in said
    (said,) = on_diluted(*measured, alone(41.0))
    assert "resnet8 gets 42.0 % right" in said
    untold = pair(57.0, 56.0, 56.0, "dilution-10", "vit-small")
    (said,) = on_diluted(measured[0], untold, alone(41.0), alone(53.0, network="vit-small"))
    assert "resnet8 gets 42.0 % right" in said


def test_few_test_images_tell_less() -> None:
    (said,) = on_diluted(pair(57.0, 46.0, 46.0, "dilution-10"), alone(41.0), tests=3000)
    assert "add 5.0 of the 16.0 points" in said
    (said,) = on_diluted(pair(57.0, 46.0, 46.0, "dilution-10"), alone(41.0), tests=400)
    assert said.endswith("next to nothing.")


def test_without_a_victim_of_the_release_alone_its_protection_is_not_judged() -> None:
    said = found_in(found_of(10), [pair(57.0, 41.5, 41.5, "dilution-10"), alone(41.0)], 5000)
    nothing = "No victim is finished yet that was trained on nothing but the release, so this run does not say how well it protects."
    assert said.overall == (nothing,)
    assert len(said.countermeasures) == 1
    assert found_in(found_of(10), [alone(41.0)], 5000).sentences == (nothing,)


def test_clean_images_alone_come_last_and_never_stand_for_the_release() -> None:
    row = {"network": "resnet8", "seed": 0, "accuracy_per_epoch": [1.0], "other_accuracy": None}
    row |= {f"{kind}_accuracy": 1.0 for kind in ("last", "peak", "relabelled")}
    names = ("clean-only-10", "dilution-10", "jpeg-10", "none")
    made = pairs([row | {"countermeasure": name, "data": data} for name in names for data in ("clean", "protected")])
    assert [each.clean.countermeasure for each in made] == ["none", "jpeg-10", "dilution-10", "clean-only-10"]


def test_a_control_of_other_seeds_is_none() -> None:
    """The seed decides which images are clean, and this alone makes figures of other seeds differ."""
    rows = [
        {"network": "resnet8", "countermeasure": name, "data": data, "seed": seed, "accuracy_per_epoch": [value], "other_accuracy": None}
        | {f"{kind}_accuracy": value for kind in ("last", "peak", "relabelled")}
        for name, data, values in (
            ("dilution-10", "clean", (70.0, 70.0)),
            ("dilution-10", "protected", (60.0, 42.0)),
            ("clean-only-10", "clean", (58.0,)),
            ("clean-only-10", "protected", (58.0,)),
        )
        for seed, value in enumerate(values)
    ]
    (said,) = on_diluted(*pairs(rows))
    assert said.endswith(
        "resnet8 gets 51.0 % right; how much of that those clean images give alone is not known without clean-only-10 over the same seeds."
    )
