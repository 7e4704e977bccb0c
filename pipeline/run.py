"""The main job: images in, protected shards and measured victims out.

`python pipeline/run.py --help` lists every setting. Exit codes: 0 done, 1 the run failed, 2 wrong usage, 3 the time of `--minutes` was up.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline.config.command_line import parse


def main(arguments: Sequence[str] | None = None, program: str = "run.py") -> int:
    """Parse and run."""
    config = parse(arguments, program)
    from pipeline.stages.job import work  # loads torch, which takes seconds that `--help` need not wait

    return work(config)


if __name__ == "__main__":
    sys.exit(main())
