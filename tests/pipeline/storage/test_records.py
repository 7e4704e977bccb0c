"""Records: values as text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.storage.records import to_json

NESTED = {"b": [1, 2, 3], "a": {"c": [[1, 2], [3]], "d": (4, {"e": None})}}
VALUES: list[Any] = [None, True, 1, 1.5, "text\nof two lines", [], {}, [[]], [{}], NESTED]


@pytest.mark.parametrize("value", VALUES)
def test_json_is_read_back(value: Any) -> None:
    assert json.loads(to_json(value)) == json.loads(json.dumps(value))
    assert to_json(value).endswith(b"\n")


def test_json_has_sorted_keys_and_a_line_for_each_list_of_plain_values() -> None:
    assert to_json({"b": [1, 2, 3], "a": {"table": [[1, 2], [3, 4]], "name": "x"}, "c": {}}).decode() == (
        """{
  "a": {
    "name": "x",
    "table": [
      [1, 2],
      [3, 4]
    ]
  },
  "b": [1, 2, 3],
  "c": {}
}
"""
    )
