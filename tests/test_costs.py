"""What runs cost beside one another: the same things are counted of every method."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.comparison import NONE, Comparison, Measured, compare, made, read, rows, text
from pipeline.comparison_page import PAGE, write
from pipeline.costs import EXPLAINED
from pipeline.storage import Folder
from tests import finished_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """A run by feature alignment, whose surrogate took eleven minutes."""
    path = tmp_path_factory.mktemp("runs") / "run"
    finished_run.write(path)
    measured = read(Folder.open(str(path)))
    surrogate = replace(measured.found["surrogate"], timing={"seconds": 660.0})
    return replace(measured, found=measured.found | {"surrogate": surrogate})


def by(run: Measured, method: str, **counts: Any) -> Measured:
    """The same, as if another method had protected it."""
    protect = replace(run.found["protect"], counts=run.found["protect"].counts | {"method": method, **counts})
    return replace(run, uri=f"/runs/by-{method}", found=run.found | {"protect": protect})


def seconds(compared: Comparison) -> list[str]:
    table = made(compared)
    column = table.head.index("surrogate")
    assert table.head[column + 1] == "crafting"
    return [line[column] for line in table.lines]


def test_the_surrogate_stands_beside_the_crafting_that_needs_it(run: Measured, tmp_path: Path) -> None:
    compared = compare([by(run, method) for method in ("sep-fa", "tap", "error-min", "noise", "one-pixel")])
    assert seconds(compared) == ["660 s", "660 s", NONE, NONE, NONE]
    assert list(dict.fromkeys((row["method"], row["surrogate_seconds"]) for row in rows(compared))) == [
        ("sep-fa", 660.0),
        ("tap", 660.0),
        ("error-min", None),
        ("noise", None),
        ("one-pixel", None),
    ]
    folder = Folder.open(str(tmp_path))
    write(compared, folder, "costs")
    page = folder.read(PAGE).decode()
    assert '<th class="number">surrogate</th><th class="number">crafting</th>' in page
    assert EXPLAINED in page
    assert EXPLAINED in " ".join(text(compared).split())
