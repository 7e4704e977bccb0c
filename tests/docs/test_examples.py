"""The examples run: the files, and the code in the page on extending."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from sep.methods.registry import METHODS
from tests.docs.configuration import settings
from tests.docs.markdown import ROOT

EXAMPLES = ROOT / "docs" / "examples"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LOCAL = any(setting.name == "executor" for setting in settings())
SMALL = ("--pack.size", "16", "--preset", "smoke")


def run(*command: str, cwd: Path = ROOT) -> str:
    """What a command prints, in the project's folder unless `cwd` names another; it must succeed."""
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **own}, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_listed_and_can_be_started() -> None:
    names = {path.name for path in EXAMPLES.iterdir() if path.is_file()} - {"README.md"}
    assert set(re.findall(r"\]\(([\w.]+\.(?:py|sh))\)", (EXAMPLES / "README.md").read_text())) == names
    assert all(os.access(path, os.X_OK) for path in EXAMPLES.glob("*.sh"))


def test_tensors(tmp_path: Path) -> None:
    lines = (EXAMPLES / "tensors.py").read_text().splitlines()
    assert [line.split()[1] for line in lines if line.startswith(("from", "import"))] == ["torch", "sep"]  # public names alone
    said = run(sys.executable, str(EXAMPLES / "tensors.py"), cwd=tmp_path)
    assert "largest change: 8 of 8 levels" in said
    drawn = {kind: int(share) for kind, share in re.findall(r"of the (\w+) images .* (\d+)% for the target class", said)}
    assert drawn["protected"] > drawn["clean"] + 50
    assert not any(tmp_path.iterdir())


def test_own_method(tmp_path: Path) -> None:
    assert run(sys.executable, str(EXAMPLES / "own_method.py"), cwd=tmp_path) == "largest change: 8 of 8/255\n"


def test_a_folder_is_protected(tmp_path: Path) -> None:
    if not LOCAL:
        pytest.skip("needs --executor local")
    draws = np.random.default_rng(0)
    for number in range(24):
        path = tmp_path / "photos" / ("ant", "bee")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    places = [str(tmp_path / name) for name in ("photos", "run", "release")]
    said = run(str(EXAMPLES / "protect_a_folder.sh"), *places, *SMALL)
    assert "no fault" in said
    assert sorted(path.name for path in (tmp_path / "release").rglob("*.png")) == sorted(f"{n}.png" for n in range(24))


@pytest.mark.slow
def test_a_sweep_is_compared(tmp_path: Path) -> None:
    if not LOCAL:
        pytest.skip("needs --executor local")
    said = run(str(EXAMPLES / "sweep.sh"), str(tmp_path / "run"), "--preset", "smoke")
    assert "no fault" in said
    assert (tmp_path / "run" / "comparison" / "index.html").exists()
    assert all(f"steps-{steps}_checkpoints-{checkpoints}" in said for steps in (1, 2) for checkpoints in (1, 2))


def test_the_code_of_extending_runs() -> None:
    """All blocks in order, as one program: later ones build on earlier ones."""
    blocks = BLOCK.findall((ROOT / "docs" / "extending.md").read_text())
    assert len(blocks) == 10  # an example and a test for each of five things
    names: dict[str, object] = {"__name__": "extending"}
    with patch.dict(METHODS):  # one of them adds a method
        for block in blocks:
            exec(compile(block, "docs/extending.md", "exec"), names)  # our own page
