"""Check a run from its files alone: `python pipeline/verify.py --run URI`.

Shards are read one pair at a time; see `inspection` for what is looked at in each.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

from pipeline.config.flags import call
from pipeline.storage.folder import Folder
from pipeline.storage.layout import RELEASE, VERIFIED
from pipeline.storage.records import to_json
from pipeline.storage.run import Run, additions, existing_run
from pipeline.storage.stage import Manifest

NAMED = 50  # faults that the record of the outcome names


def _check_run(run: str, exported: str | None = None) -> int:
    """Check the release in the shards of a run from its files alone: keys, labels, hashes, counts, and the budget of every pixel.

    Args:
        run: folder or URI (s3://...) of a finished run, of an addition to one, or of a point of a sweep
        exported: folder that export.py wrote: check its files, by the record beside it, instead of the shards
    """
    if exported is not None:
        return _check_exported(run, exported)
    from pipeline.operations.verification import verify, verify_addition  # here and below: loads torch, for which `--help` need not wait

    folder = existing_run(run)
    found = verify(folder)
    lines, sound = [str(found)], not found.faults
    _record(folder, {"faults": len(found.faults), "first": found.faults[:NAMED], "said": lines[0].splitlines()[-1]})
    for name, addition in additions(folder).items():
        said, whole = verify_addition(addition, Manifest.load(folder, "protect"))
        lines += [f"{name}: {line}" for line in said.splitlines()]
        sound = sound and whole
    print("\n".join(lines))
    return 0 if sound else 1


def _check_exported(run: str, exported: str) -> int:
    from pipeline.operations.exported import verify_exported

    found = verify_exported(existing_run(run), Folder.open(exported))
    print(found)
    return 1 if found.faults else 0


def _record(folder: Run, outcome: dict[str, Any]) -> None:
    """Record the outcome with the run, on the page of its report, if it has one, and in MLflow, if the run is logged there."""
    from pipeline.stages.outcome import show

    try:
        folder.write(VERIFIED, to_json({RELEASE: Manifest.load(folder, "protect").digest, **outcome}))
    except (ValueError, OSError) as error:  # storage that may only be read
        print(f"the outcome is not with the run: {error}", file=sys.stderr)
    else:
        show(folder, "verify")


def main(arguments: Sequence[str] | None = None, program: str = "verify.py") -> int:
    """Check, and return the exit code: 0 with a summary, 1 with every fault by name, 2 for wrong usage."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    try:
        return call(_check_run, program, arguments)
    except (ValueError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
