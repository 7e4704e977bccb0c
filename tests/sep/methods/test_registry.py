"""The table of methods: what it says of each."""

from __future__ import annotations

from sep.methods.registry import METHODS


def test_what_was_published_against_a_method_is_said_of_its_variants_too() -> None:
    against = {name: method.undone for name, method in METHODS.items() if method.undone}
    assert against.keys() == {"sep", "sep-fa", "sep-fa-vr", "sep-drawn", "sep-fa-drawn", "tap"}
    assert "TAP" in against.pop("tap")
    assert all(said.startswith("Published for SEP") for said in against.values())
