"""The help for settings that take names from a table of `sep`: methods, countermeasures, views."""

from __future__ import annotations

from sep.countermeasures import registry as countermeasures
from sep.methods.registry import METHODS
from sep.views import registry as views


def known_methods() -> str:
    """Return the help for the methods, from their table."""
    return "; ".join(f"{name}: {method.description}" for name, method in METHODS.items())


def known_countermeasures() -> str:
    """Return the help for the countermeasures, from their table."""
    alone = [name for name, each in countermeasures.COUNTERMEASURES.items() if each.clean_only]
    others = [name for name in countermeasures.COUNTERMEASURES if name not in alone]
    return (
        f"what an adversary does against the protection: {', '.join(others)} (or jpeg, webp, resize and dilution by any other number from "
        "1 to 99), or several at once, in order, as in grayscale+jpeg-10; and, as controls, training on the clean images of a dilution "
        f"alone: {', '.join(alone)}"
    )


def known_views() -> str:
    """Return the help for the views, from their table."""
    return (
        f"what may happen to a picture before a network sees it; surrogates are trained, and images protected, for all of it: "
        f"{views.known()}; a name that comes several times has as many shares"
    )
