"""Run a program of the project in one process, on a device that computes nothing, whatever its values.

python -m tests.benchmarks.gpu.without_values pipeline/reproduce.py FLAGS
"""

from __future__ import annotations

import runpy
import sys

import cluster.local
import cluster.processes
from pipeline.protection import release
from tests.gpu.without_values import any_value_will_do


def main() -> None:
    """Replace what looks at values, and run it."""
    any_value_will_do()
    setattr(release, "check_budget", lambda *_: None)  # noqa: B010
    for place in (cluster.processes, cluster.local):
        setattr(place, "cpus", lambda: 1)  # noqa: B010  # no other process, which would know nothing of this
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
