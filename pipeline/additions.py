"""Where additions to a run are: `added/0001`, `added/0002`, ..., each itself a run folder with a pack and a protect stage.

`grow.py` makes them, `export.py` takes one of them as `--run`, and `verify.py` takes it or looks at all of them with the run.
"""

from __future__ import annotations

from pipeline.storage import Folder

ADDED = "added"


def additions(run: Folder) -> dict[str, Folder]:
    """Every addition of a run, finished or not, by name (`added/0001`), in the order in which they were made."""
    numbers = sorted({name.split("/")[0] for name in run.child(ADDED).names(recursive=True) if "/" in name})
    return {f"{ADDED}/{number}": run.child(ADDED).child(number) for number in numbers}
