"""File names of a run stand in `storage/layout.py` and nowhere else."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.storage import layout
from tests import ROOT as PROJECT

ROOT = PROJECT / "pipeline"
NAMES = sorted(value for name, value in vars(layout).items() if name.isupper() and isinstance(value, str) and "." in value)
MODULES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "storage" / "layout.py"]


def literals(tree: ast.AST) -> Iterator[str]:
    """Yield every string in the code that is not a docstring."""
    for node in ast.walk(tree):
        inside = [child for child in ast.iter_child_nodes(node) if not isinstance(node, ast.Expr)]
        yield from (child.value for child in inside if isinstance(child, ast.Constant) and isinstance(child.value, str))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_module_spells_a_name_out(path: Path) -> None:
    spelt = {name for text in literals(ast.parse(path.read_text())) for name in NAMES if text == name or text.endswith(f"/{name}")}
    assert not spelt, f"import them from pipeline.storage.layout: {spelt}"


def test_every_name_is_explained_in_the_docs() -> None:
    page = (ROOT.parent / "docs" / "run-folder.md").read_text() + (ROOT.parent / "docs" / "reliability.md").read_text()
    assert [name for name in NAMES if name not in page] == []
