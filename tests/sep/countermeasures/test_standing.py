"""The standing set: adversaries that exist, tried from cheap to costly, and the strongest of equal cost first."""

from __future__ import annotations

from sep.countermeasures.registry import COUNTERMEASURES, plan
from sep.countermeasures.standing import STANDING, cheapest_first, expected_cost
from sep.train_config import TrainConfig

CONFIG = TrainConfig(epochs=30)


def test_the_standing_set_is_of_the_table_and_takes_no_clean_pictures() -> None:
    assert len({*STANDING}) == len(STANDING)
    assert {*STANDING} < COUNTERMEASURES.keys() - {"none"}
    assert not any(COUNTERMEASURES[name].clean_images for name in STANDING)


def test_what_an_adversary_has_besides_the_release_is_said() -> None:
    assert plan("jpeg-10").knowledge == ""
    assert plan("jpeg-10+pretrained").knowledge == "a network trained on other images"
    assert plan("known-pattern+pretrained").knowledge == "a network trained on other images and the method and its budget"


def test_a_cost_is_that_of_the_whole_training() -> None:
    assert expected_cost("none", CONFIG) == expected_cost("jpeg-10", CONFIG) == 1
    assert expected_cost("early-stop", CONFIG) == 6 / 30
    assert expected_cost("pretrained", CONFIG) == COUNTERMEASURES["pretrained"].cost * 10 / 30


def test_the_plain_training_is_first_and_then_the_cheapest_and_the_strongest() -> None:
    asked = ("cutout", "grayscale", "adversarial-8", "jpeg-10", "grayscale", "early-stop", "grayscale+jpeg-50")
    expected = ("none", "early-stop", "jpeg-10", "grayscale", "cutout", "grayscale+jpeg-50", "adversarial-8")
    assert cheapest_first(asked, CONFIG) == expected
    assert cheapest_first(("jpeg-10", "none"), CONFIG) == ("none", "jpeg-10")
    costs = [expected_cost(name, CONFIG) for name in cheapest_first(STANDING, CONFIG)[1:]]
    assert costs == sorted(costs)
