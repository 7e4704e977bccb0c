"""The setting of a pretrained network: a name, or a file of weights."""

from __future__ import annotations

from pipeline.storage.folder import absolute
from pipeline.storage.layout import WEIGHT_FILES


def is_file(initial: str) -> bool:
    """Return whether the setting names a file of weights, which fits one architecture of the victims."""
    return initial.endswith(WEIGHT_FILES)


def located(initial: str) -> str:
    """Return the setting with the file, if it is one, by its absolute path or URI: workers start in other folders.

    Raises:
        ValueError: see `absolute`.
    """
    return absolute(initial) if is_file(initial) else initial
