"""The paper's protocol on one machine: the main job with the preset `paper`, and a JSON card of the results after every start.

`python pipeline/reproduce.py --data FOLDER --minutes 9`, again and again until it ends with 0, does it in pieces of under ten minutes.
Exit codes: 0 done, 1 it failed, 2 wrong usage, 3 the time was up: run the same command again.
"""

from __future__ import annotations

import json
import logging
import shlex
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # nothing needs to be installed: the project is where this file is
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.config.command_line import parse_as
from pipeline.config.schema import RunConfig
from pipeline.storage.layout import CARD
from pipeline.storage.records import to_json
from pipeline.storage.run import Run, open_run

log = logging.getLogger(__name__)

Machine = dict[str, Any]


def main(arguments: Sequence[str] | None = None, program: str = "reproduce.py") -> int:
    """Parse, run, and write the card of the results so far."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    config, begun = parse_as(given, RunConfig, program, preset="paper"), time.monotonic()
    from pipeline.stages.job import work  # loads torch, which takes seconds that `--help` need not wait

    code = work(config)
    write = partial(write_card, config, shlex.join(["python", "pipeline/reproduce.py", *given]))
    try:
        try:
            write(time.monotonic() - begun)
        except KeyboardInterrupt:  # asked to end in the meantime: the card is what is still due
            write(time.monotonic() - begun)
    except (ValueError, OSError) as error:
        log.error("failed: no card: %s", error)
        return code or 1
    return code


def write_card(config: RunConfig, command: str, seconds: float) -> None:
    """Write the card into the run's folder and print it as a table, if the images are packed.

    Raises:
        ValueError: a record of the run, or the card of an earlier start, is damaged.
        OSError: storage refused.
    """
    from pipeline.results.card import make
    from pipeline.results.card_table import table
    from pipeline.results.machine import counted  # loads torch

    folder = open_run(config.run)
    if (card := make(config, folder)) is None:
        return
    folder.write(CARD, to_json({**card, "command": command, "machines": counted(_machines(folder), seconds)}))
    print(f"\n{table(card)}\ncard: {folder.uri}/{CARD}")


def _machines(folder: Run) -> list[Machine]:
    """Return the machines of earlier starts."""
    try:
        machines: list[Machine] = json.loads(folder.read(CARD))["machines"]
        return machines
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder.uri}/{CARD} is damaged ({error!r}): delete it, and run the same command again") from error


if __name__ == "__main__":
    sys.exit(main())
