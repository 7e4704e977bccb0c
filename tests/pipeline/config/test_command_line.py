"""The command line starts at once: it loads names and settings, and no library that computes."""

from __future__ import annotations

import subprocess
import sys

from tests import ROOT

HEAVY = ("torch", "torchvision", "ray", "mlflow", "matplotlib", "scipy", "webdataset", "pandas", "PIL")
SECONDS = 1.5  # CPU time, --help included
PROGRAM = f"""
import sys, time
from pipeline.config.command_line import parse
assert not set({HEAVY}) & set(sys.modules), sorted(set({HEAVY}) & set(sys.modules))
try:
    parse(["--help"])
except SystemExit:
    assert not set({HEAVY}) & set(sys.modules)
    print(time.process_time(), file=sys.stderr)
"""


def test_the_command_line_loads_nothing_that_computes_and_takes_a_second() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert "--protect.method" in done.stdout, done.stderr
    assert float(done.stderr) < SECONDS
