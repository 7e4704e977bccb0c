"""Where additions to a run are: `added/0001`, `added/0002`, ..., each itself a run folder with a pack and a protect stage.

`export.py` takes one of them as `--run`, and `verify.py` takes it or looks at all of them with the run.
"""

from __future__ import annotations

from pipeline.storage import Folder

ADDED = "added"


def additions(run: Folder) -> list[Folder]:
    """Every addition of a run, finished or not, in the order in which they were made."""
    folder = run.child(ADDED)
    return [folder.child(number) for number in sorted({name.split("/")[0] for name in folder.names(recursive=True) if "/" in name})]
