"""Import rule of the tests that need a GPU: on its machine is little beside torch."""

from __future__ import annotations

import ast
import sys

from tests import ROOT
from tests.architecture.test_layering import imports

NEEDS_MORE = ("test_loading", "test_protocol")  # which skip themselves
MAY_IMPORT = {"sep", "tests", "torch", "torchvision", "numpy", "pytest", *sys.stdlib_module_names}


def test_the_gpu_tests_import_torch_alone() -> None:
    """Themselves, or by a module of the tests that they use."""
    left = [path for path in (ROOT / "tests" / "gpu").glob("*.py") if path.stem not in NEEDS_MORE]
    reached, outside = {*left}, set()
    while left:
        path = left.pop()
        names = [*imports(ast.parse(path.read_text()))]
        outside |= {(path.name, package) for name in names if (package := name.partition(".")[0]) not in MAY_IMPORT}
        modules = [module for name in names if name.startswith("tests.") for module in (name, name.rpartition(".")[0])]
        new = {file for module in modules if (file := ROOT / f"{module.replace('.', '/')}.py").exists()} - reached
        reached |= new
        left += new
    assert len(reached) > 8
    assert outside == set()
