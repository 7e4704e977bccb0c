"""A whole run on one machine where neither Ray nor MLflow is installed, nor what draws the report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

STAGES = ("pack", "surrogate", "protect", "victim")
BLOCKED = ("ray", "mlflow", "matplotlib", "jinja2")
PROGRAM = f"""
import importlib.metadata, runpy, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED}:
            raise ModuleNotFoundError(name)

def version(package, installed=importlib.metadata.version):
    if package in {BLOCKED}:
        raise importlib.metadata.PackageNotFoundError(package)
    return installed(package)

importlib.metadata.version = version
sys.meta_path.insert(0, Blocked())
sys.argv = sys.argv[1:]
sys.path.insert(0, {str(ROOT)!r})
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    """One of the commands, in a process that has nothing of what is blocked."""
    return subprocess.run([sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow  # `test_bare_machine` blocks these and more
def test_a_run_needs_no_ray_and_no_mlflow(tmp_path: Path) -> None:
    run = ("--preset", "smoke", "--run", str(tmp_path), "--executor", "local", "--tracking-uri", "none", "--stages", *STAGES)
    done = start("pipeline/run.py", *run)
    assert done.returncode == 0, done.stderr
    manifests = [json.loads((tmp_path / stage / "manifest.json").read_text()) for stage in STAGES]
    assert all("torch" in manifest["versions"] and "ray" not in manifest["versions"] for manifest in manifests)
    assert "trained on your originals" in done.stdout
    assert not list(tmp_path.glob("mlflow*"))
    audit = start("pipeline/verify.py", "--run", str(tmp_path))
    assert audit.returncode == 0, audit.stdout + audit.stderr


def test_ray_is_missed_where_it_is_asked_for(tmp_path: Path) -> None:
    failed = start("pipeline/run.py", "--preset", "smoke", "--run", str(tmp_path), "--tracking-uri", "none")
    assert failed.returncode == 1
    assert "--executor ray needs Ray, which is not installed" in failed.stderr
    assert "Traceback" not in failed.stderr
