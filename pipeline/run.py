"""The main job: images in, protected shards and measured victims out.

`python pipeline/run.py --help` lists every setting. Exit codes: 0 done, 1 the run failed, 2 wrong usage, 3 the time of `--minutes` was up.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from typing import Any

from cluster.deadline import TimeIsUp
from cluster.work import TrainingFailed, WorkFailed
from pipeline.config.command_line import parse

log = logging.getLogger(__name__)


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, and turn every failure into one line and an exit code."""
    config = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr, force=True)
    signal.signal(signal.SIGTERM, _stop)
    from pipeline.stages.job import run  # loads torch, which takes seconds that `--help` need not wait

    try:
        summary, faults = run(config)
        print(summary)
    except (ValueError, OSError, WorkFailed, TrainingFailed) as error:
        log.error("failed: %s", error)
        return 1
    except TimeIsUp:
        log.error("the %g minutes are used up: run the same command again", config.minutes)
        return 3
    except KeyboardInterrupt:
        log.error("stopped: everything finished so far is kept, and the same command goes on from there")
        return 1
    for fault in faults:
        log.error("failed: %s", fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
