"""Unsafe calls: no module may run what comes from storage, checked on every syntax tree."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.architecture.test_layering import TREES, imports

RUNS_WHAT_IT_READS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "subprocess", "pty", "ctypes"}
# The published CIFAR batches are pickles; their reader builds arrays and containers, and refuses to call anything else.
# Calls and results travel between processes of one machine as pickles. What storage gives never does.
# One function of the C library, which is loaded anyway, is called to set how it returns memory.
MAY_IMPORT = {"pipeline.sources.cifar": {"pickle"}, "sep.execution": {"ctypes"}, "cluster.processes": {"pickle"}}
MAY_CALL = {"pipeline.sources.cifar": {"pickle.UnpicklingError"}, "cluster.processes": {"pickle.dumps", "pickle.loads"}}
NEVER = ("eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "wds.WebDataset", "wds.DataPipeline")
NEVER_METHOD = ("extract", "extractall", "unpack_archive", "tar_file_expander", "url_opener", "gopen")


def faults(name: str, tree: ast.AST) -> Iterator[str]:
    """Return the forbidden calls of a module."""
    found = {imported.partition(".")[0] for imported in imports(tree)} & RUNS_WHAT_IT_READS
    yield from (f"imports {module}" for module in sorted(found - MAY_IMPORT.get(name, set())))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called in NEVER or called.rpartition(".")[2] in NEVER_METHOD:
            yield f"calls {called}"
        if called.startswith("pickle.") and called not in MAY_CALL.get(name, set()):
            yield f"calls {called}"
        if called.endswith(("torch.load", "jit.load", "hub.load")) and given.get("weights_only") != "True":
            yield f"calls {called} without weights_only=True"
        if called.endswith(("np.load", "numpy.load")) or given.get("allow_pickle", "False") != "False":
            yield f"calls {called}, which may unpickle"
        if called == "tarfile.open" and given.get("mode") != "'r:'":
            yield "opens a tar that may be compressed"
        if given.get("shell", "False") != "False":
            yield f"calls {called} with a shell"


@pytest.mark.parametrize("name", TREES)
def test_no_module_runs_what_it_reads(name: str) -> None:
    assert list(faults(name, TREES[name])) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from cloudpickle import loads",
        "pickle.loads(data)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "read(path, allow_pickle=True)",
        "wds.WebDataset('pipe:rm x')",
        "tar.extractall(folder)",
        "tar.extract('a')",
        "tarfile.open(fileobj=stream)",
        "tarfile.open(fileobj=stream, mode='r|*')",
        "group_by_keys(tar_file_expander(x))",
        "yaml.load(text)",
        "eval(text)",
        "run('x', shell=True)",
    ],
)
def test_each_of_these_is_seen(line: str) -> None:
    assert list(faults("pipeline.some", ast.parse(line)))


def test_what_is_allowed_is_not() -> None:
    allowed = "torch.load(x, weights_only=True)\ntarfile.open(fileobj=s, mode='r:')\nyaml.safe_load(t)\nb'x'.decode()"
    assert not list(faults("pipeline.some", ast.parse(allowed)))


def test_the_reader_of_pickled_batches_calls_nothing() -> None:
    """The exception for this module covers one class, which decides for every name whether a pickle may call it."""
    tree = TREES["pipeline.sources.cifar"]
    bases = [ast.unparse(base) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for base in node.bases]
    assert bases == ["pickle.Unpickler"]
    finder = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "find_class")
    assert not [node for node in ast.walk(finder) if isinstance(node, ast.Call) and "super" in ast.unparse(node)]
