"""The setting of a pretrained network: a name, or a file of weights."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.storage.folder import absolute
from pipeline.storage.layout import WEIGHT_FILES


class Initial(NamedTuple):
    """A pretrained network that a training begins with.

    Attributes:
        name: of a network of a library, or the path or URI of a file of weights.
        size: side in pixels to which it resizes what it sees.
        flag: the setting that asks for it, for messages.
    """

    name: str
    size: int
    flag: str

    @property
    def is_file(self) -> bool:
        """True if the name is that of a file of weights, which fits one architecture of `networks`."""
        return is_file(self.name)


def is_file(name: str) -> bool:
    """Return whether a setting names a file of weights."""
    return name.endswith(WEIGHT_FILES)


def located(name: str) -> str:
    """Return the setting with the file, if it is one, by its absolute path or URI: workers start in other folders.

    Raises:
        ValueError: see `absolute`.
    """
    return absolute(name) if is_file(name) else name
