"""The public names of `sep`, and the tables whose functions are imported late."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
from torch import Tensor

import sep
from sep.countermeasures.registry import COUNTERMEASURES
from sep.deferred import Deferred
from sep.methods.registry import METHODS
from tests import ROOT

MODULES = sorted(module.name for module in pkgutil.walk_packages(sep.__path__, "sep."))


def deferred(value: Any) -> list[Deferred]:
    """Return the functions in a field of a table that are imported late."""
    function = value.func if isinstance(value, partial) else value
    return [function] if isinstance(function, Deferred) else []


@pytest.mark.parametrize("name", sep.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(sep, name) is getattr(importlib.import_module(sep.HOMES[name]), name)
    assert f"sep.{name}" not in MODULES  # a module of that name would hide the public one


def test_a_type_checker_sees_the_same_names() -> None:
    tree = ast.parse((ROOT / "sep/__init__.py").read_text())
    seen = {alias.asname: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert {name: home for name, home in seen.items() if name} == sep.HOMES


def test_another_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'protected'"):
        sep.protected  # noqa: B018


@pytest.mark.parametrize("table", [METHODS, COUNTERMEASURES], ids=["methods", "countermeasures"])
def test_every_late_function_is_there(table: dict[str, Any]) -> None:
    found = [function for entry in table.values() for value in vars(entry).values() for function in deferred(value)]
    assert len(found) > 10
    assert all(callable(function.function) for function in found)


def test_every_method_has_a_late_function() -> None:
    assert all(isinstance(method.perturb, Deferred) for method in METHODS.values())


def test_tables_and_settings_need_no_torch() -> None:
    program = """
import sys
import sep, sep.budget, sep.choices, sep.countermeasures.registry, sep.craft_config, sep.methods.registry, sep.train_config
assert sep.CraftConfig(method="linear-separable").per_network == 0
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", [name for name in MODULES if name != "sep.winograd"])  # it computes on CPUs alone
def test_no_constant_is_a_tensor(name: str) -> None:
    """A constant tensor would stay on the CPU, and torch refuses to combine it with features on a GPU."""
    assert not [constant for constant, value in vars(importlib.import_module(name)).items() if isinstance(value, Tensor)]
