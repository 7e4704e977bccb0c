"""Costs of runs side by side: the same counts for every method, and no omission without a word."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from pipeline.pages import comparison_figures
from pipeline.pages.comparison_page import write
from pipeline.results.comparison import EXPLAINED, NONE, Comparison, compare, made, rows, text
from pipeline.results.run_results import RunResults
from pipeline.storage.folder import Folder
from pipeline.storage.layout import PAGE
from tests.fixtures import finished_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    """A run by feature alignment, whose surrogate took eleven minutes."""
    path = tmp_path_factory.mktemp("runs") / "run"
    finished_run.write(path)
    measured = RunResults.read(Folder.open(str(path)))
    surrogate = replace(measured.manifests["surrogate"], timing={"seconds": 660.0})
    return replace(measured, manifests={**measured.manifests, "surrogate": surrogate})


def by(run: RunResults, method: str, **counts: Any) -> RunResults:
    """Return the same results as if another method had protected the run."""
    protect = replace(run.manifests["protect"], counts=run.manifests["protect"].counts | {"method": method, **counts})
    return replace(run, folder=Folder.open(f"/runs/by-{method}"), trials=run.trials, manifests={**run.manifests, "protect": protect})


def seconds(compared: Comparison) -> list[str]:
    table = made(compared)
    column = table.head.index("surrogate")
    assert table.head[column + 1] == "crafting"
    return [line[column] for line in table.lines]


def test_the_surrogate_stands_beside_the_crafting_that_needs_it(run: RunResults, tmp_path: Path) -> None:
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
    heads = re.findall(r'<th scope="col" class="number"><button type="button">(\w+)</button></th>', page)
    assert heads[heads.index("surrogate") + 1] == "crafting"
    assert EXPLAINED in page
    assert EXPLAINED in " ".join(text(compared).split())


@pytest.mark.parametrize("methods", [(), ("noise",), ("noise", "linear-separable", "autoregressive", "one-pixel")])
def test_methods_that_need_no_gradient_are_named_where_they_are_not_drawn(
    run: RunResults, methods: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def written(figure: Figure) -> bytes:
        said.extend(part.get_text() for part in figure.findobj(Text))
        return b""

    monkeypatch.setattr(comparison_figures, "png", written)
    comparison_figures.cost(compare([run, by(run, "tap", gradients=36), *(by(run, method, gradients=0) for method in methods)]))
    (label,) = (part.replace("\n", " ") for part in said if part.startswith("gradients per image"))
    named = f" without gradients, and so not on this scale: {', '.join(methods)}" if methods else ""
    assert label == f"gradients per image{named}"
