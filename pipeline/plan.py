"""Estimate a run without starting it: `python pipeline/plan.py --preset imagenet-subset --data SOURCE`.

Takes every setting of run.py. Images are counted, some of them decoded, and this cluster is made to compute for ten seconds.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from cluster.work import WorkFailed
from pipeline.config.command_line import parse_as
from pipeline.config.plan_config import PlanConfig


def main(arguments: Sequence[str] | None = None, program: str = "plan.py") -> int:
    """Print the plan, and return the exit code: 0 for success, 1 for a failure, which is printed, 2 for wrong usage."""
    config = parse_as(arguments, PlanConfig, program)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    from pipeline.operations.estimate import plan  # loads torch, which takes seconds that `--help` need not wait

    try:
        print(plan(config))
    except (ValueError, OSError, WorkFailed) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
