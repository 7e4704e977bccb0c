"""The configuration that the finished stages of a run were made with, as its folder records it."""

from __future__ import annotations

import json
from dataclasses import replace

from pipeline.config.presets import from_tree
from pipeline.config.schema import RunConfig
from pipeline.storage.layout import CONFIG
from pipeline.storage.run import Point, Run


def recorded(folder: Run) -> RunConfig:
    """Return the configuration of a run, which is where it is now; of a point of a sweep, that of the point in the run of its parent.

    Raises:
        ValueError: the record is missing or damaged.
    """
    try:
        tree = json.loads(folder.read(CONFIG))
    except (FileNotFoundError, ValueError) as error:
        fault = "missing" if isinstance(error, FileNotFoundError) else "damaged"
        raise ValueError(f"{folder.uri}/{CONFIG} is {fault}: the next start of the run writes it again") from error
    return replace(from_tree(tree), run=(folder.parent if isinstance(folder, Point) else folder).uri)
