"""`reproduce.py` where the project is not installed, and nothing else is but what `docs/reproduce.md` lists."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from tests import ROOT
from tests.fixtures import source_kinds

PAGE = (ROOT / "docs" / "reproduce.md").read_text()
MACHINE = ("torch", "torchvision", "numpy", "pyarrow", "pillow", "pyyaml", "scipy")
FOREIGN = re.compile("extra ==|platform_system == .Windows")  # what another choice or machine would need
BLOCKED = {"ray", "mlflow", "matplotlib", "jinja2", "markupsafe", "sep-pipeline", "pytest"}
# Everything that other distributions brought is out of reach, as if it was not installed: modules, and their versions.
PROGRAM = """
import json, re, runpy, sys
from importlib.metadata import DistributionFinder, packages_distributions

there, (program, *flags) = set(json.loads(sys.argv[1])), sys.argv[2:]
finders = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
packages = {name: {re.sub("[-_.]+", "-", of).lower() for of in found} for name, found in packages_distributions().items()}
packages = {name: found for name, found in packages.items() if name not in ("sep", "cluster", "pipeline")}

class Bare:
    def find_spec(self, name, path=None, target=None):
        if not packages.get(name.partition(".")[0], there) & there:
            return None
        return next((spec for finder in finders if (spec := finder.find_spec(name, path, target))), None)

    def find_distributions(self, context=DistributionFinder.Context()):
        found = (each for finder in finders if hasattr(finder, "find_distributions") for each in finder.find_distributions(context))
        return (each for each in found if re.sub("[-_.]+", "-", each.name).lower() in there)

sys.meta_path[:] = [Bare()]
sys.argv, sys.path[0] = [program, *flags], program.rpartition("/")[0]
try:
    runpy.run_path(program, run_name="__main__")
finally:
    used = set().union(*(packages.get(name.partition(".")[0], set()) for name in sys.modules))
    print(json.dumps(sorted(used)))
"""


def wheels() -> set[str]:
    """The wheels that the page tells to install."""
    command = re.search(r"pip install --target (?:.*\\\n)*.*", PAGE)
    assert command
    return set(re.findall(r"(?<![-\w./])[a-z][a-z-]+(?![\w./:])", command[0].partition("only-binary=:all:")[2]))


def closure(names: set[str]) -> set[str]:
    """Distributions with everything that they require and that is installed here."""
    found: set[str] = set()
    waiting = [*names]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name not in found:
            found.add(name)
            try:
                needed = requires(name) or []
            except PackageNotFoundError:
                continue
            waiting += [match[0] for line in needed if not FOREIGN.search(line) and (match := re.match(r"[\w.-]+", line))]
    return found


def test_it_needs_what_the_page_lists_and_nothing_else(tmp_path: Path) -> None:
    source_kinds.hub(tmp_path / "data")  # six training images, three test images, three classes
    training = ("--networks", "resnet8", "--epochs", "1", "--batch-size", "3")
    small = [f"--{stage}.{word[2:]}" if word[:2] == "--" else word for stage in ("surrogate", "victim") for word in training]
    flags = ["--data", str(tmp_path / "data"), "--run", str(tmp_path / "run"), "--protect.checkpoints", "1", "--protect.steps", "1", *small]
    there = json.dumps(sorted((closure({*MACHINE}) | wheels()) - BLOCKED))
    command = [sys.executable, "-c", PROGRAM, there, "pipeline/reproduce.py", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "resnet8, protected, 8/255" in done.stdout
    used = set(json.loads(done.stdout.splitlines()[-1]))
    assert not used & BLOCKED
    assert used - closure({*MACHINE}) == wheels() - closure({*MACHINE})
    assert json.loads((tmp_path / "run" / "pack" / "manifest.json").read_text())["versions"].keys() >= {"torch", "webdataset"}


def test_the_wheels_need_no_others() -> None:
    """And those that the machine has bring only themselves."""
    assert closure(wheels()) - closure({*MACHINE}) <= wheels() | {"eval-type-backport", "importlib-metadata", "zipp"}  # of earlier Pythons
