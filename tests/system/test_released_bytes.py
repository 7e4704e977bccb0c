"""A refactor leaves the bytes of a release identical: four small releases against their recorded digests.

The record was made by `python -m tests.system.test_released_bytes`. It holds for one version of torch and of Pillow, and for processors
that round alike: libraries are restricted to instructions that all of them have, and a small computation shows whether that was enough.
Elsewhere the test is skipped, by name. The surrogate is trained with a thread a CPU, which rounds as well: the record is of two.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest

from tests import ROOT

RECORD = Path(__file__).with_name("released_bytes.json")
CPUS = 2
METHODS = ("sep-fa", "sep-fa-vr", "error-min-class", "linear-separable")
# The same instructions on every processor of the last ten years, and so the same rounding.
ENVIRONMENT = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
ARITHMETIC = """
import hashlib, torch
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
images = torch.rand(4, 3, 32, 32, generator=generator, requires_grad=True)
weights = torch.rand(16, 3, 3, 3, generator=generator)
features = torch.nn.functional.conv2d(images, weights, padding=1).relu().mean((2, 3))
loss = torch.nn.functional.cross_entropy(features @ torch.rand(16, 10, generator=generator), torch.arange(4))
(gradient,) = torch.autograd.grad(loss, images)
print(hashlib.sha256(gradient.numpy().tobytes()).hexdigest())
"""


def arithmetic() -> dict[str, str]:
    """What decides the last bit: versions, and how this machine rounds."""
    program = [sys.executable, "-c", ARITHMETIC]
    rounding = subprocess.run(program, check=True, capture_output=True, text=True, env=os.environ | ENVIRONMENT).stdout.strip()
    return {"torch": version("torch"), "pillow": version("pillow"), "rounding": rounding}


def _on_two_cpus() -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CPUS])


def released(folder: Path) -> dict[str, dict[str, str]]:
    """The digest of every shard of small releases, by method and name: the points of one sweep."""
    stages = ["pack", "surrogate", "protect"]
    command = [sys.executable, "pipeline/run.py", "--preset", "smoke", "--run", str(folder), "--stages", *stages]
    command += ["--executor", "local", "--tracking-uri", "none", "--sweep", f"protect.method={','.join(METHODS)}"]
    subprocess.run(command, check=True, env=os.environ | ENVIRONMENT, cwd=ROOT, preexec_fn=_on_two_cpus)
    return {
        method: {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted((folder / "sweep" / f"method-{method}" / "protect").glob("*.tar"))
        }
        for method in METHODS
    }


def test_the_releases_are_those_of_the_record(tmp_path: Path) -> None:
    record = json.loads(RECORD.read_text())
    if len(os.sched_getaffinity(0)) < CPUS:
        pytest.skip(f"the record is of {CPUS} CPUs")
    here = arithmetic()
    if here != record["arithmetic"]:
        pytest.skip(f"the record is of {record['arithmetic']}, this is {here}")
    assert released(tmp_path) == record["released"]


def main() -> None:
    """Make the record."""
    with tempfile.TemporaryDirectory() as folder:
        made = released(Path(folder))
    RECORD.write_text(json.dumps({"arithmetic": arithmetic(), "released": made}, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
