"""The page of all settings has every one of them, and says what the command line says."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from tests.docs.configuration import OWN_UNITS, PAGE, page, settings, values

EVERY = list(settings())


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text() == page(), "run: make docs"


@pytest.mark.parametrize("setting", EVERY, ids=lambda setting: setting.name)
def test_every_setting_is_explained(setting: Any) -> None:
    assert setting.text
    assert f"| `{setting.flag}` | {setting.values} |" in PAGE.read_text()


def test_settings_of_base_classes_and_sections_are_there() -> None:
    names = [setting.name for setting in EVERY]
    assert len(set(names)) == len(names)
    assert {"run", "pack.size", "surrogate.epochs", "protect.method", "protect.classes", "victim.countermeasures"} <= set(names)


def test_units_are_those_of_settings_that_exist() -> None:
    units = {setting.name: setting.unit for setting in EVERY}
    assert OWN_UNITS.keys() <= units.keys()
    assert all(units[name] == unit for name, unit in OWN_UNITS.items())
    assert units["protect.eps_levels"] == "grey levels of 255"
    assert units["protect.method"] == "–"


def test_types_are_said_in_words() -> None:
    assert values(int | None) == "whole number"
    assert values(Literal["a", "b"]) == "`a`, `b`"
    assert values(int | Literal["auto"]) == "whole number or `auto`"
    assert values(tuple[str, ...]) == "several: text"
