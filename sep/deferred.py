"""Functions named by their place, so that a table of them can be read before torch is imported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any


@dataclass(frozen=True)
class Deferred:
    """A function that is imported when it is first called.

    Attributes:
        place: its module and name, as in `sep.methods.noise:random_signs`.
    """

    place: str

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the function."""
        return self.function(*arguments, **named)

    @property
    def function(self) -> Callable[..., Any]:
        """The function itself.

        Raises:
            ImportError, AttributeError: nothing of that name is there.
        """
        function: Callable[..., Any] = resolve_name(self.place)
        return function
