"""The suites of `sep` and of the local executor on a device that launches kernels and computes nothing, where one can be built.

It has torch's own host code, allocator and compilers: a wrong device, a wrong type or a lost layout ends a test there as on a GPU.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import ROOT

HANGS_SECONDS = 120  # of one test there, of which the longest takes ten on a busy machine


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This environment's Python with that device in the place of CUDA's libraries."""
    build = Path(os.environ.get("SEP_DATA", ROOT.parent / "shared" / "data")).resolve().parent / "gpu" / "nullcuda" / "build.sh"
    if not build.is_file():
        pytest.skip(f"no such device at {build.parent}")
    if shutil.which("gcc") is None or shutil.which("g++") is None:
        pytest.skip("the device is built by gcc and g++")
    if torch.version.cuda is None:
        pytest.skip("this torch is a build without CUDA")
    folder = tmp_path_factory.mktemp("device")
    subprocess.run(["bash", str(build), sys.prefix, str(folder)], check=True, capture_output=True)
    return folder / "python"


@pytest.mark.parametrize(
    "suites",
    [
        ("tests/gpu", "tests/cluster/test_local.py"),
        pytest.param(("tests/sep", "-n", "2"), marks=pytest.mark.slow),  # which compute on the CPU, beside a GPU: minutes
    ],
    ids=["on the device", "beside it"],
)
def test_nothing_but_values_is_wrong(python: Path, suites: tuple[str, ...]) -> None:
    """Comparisons are not explained: nearly all fail there, and telling two long lists of noise apart can take pytest hours."""
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--assert", "plain", "--device", "cuda", "--no-values", *suites]
    command += ["-o", f"timeout={HANGS_SECONDS}", "-o", "timeout_method=thread"]  # a test that hangs says where each thread is
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
