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
        f"what an adversary does against the protection: {', '.join(others)} (or jpeg, webp, resize, diffusion and dilution by any other "
        "number from 1 to 99, bridge by any number of pairs), or several at once, in order, as in grayscale+jpeg-10; and, as controls, "
        f"training on the clean images of a dilution alone: {', '.join(alone)}"
    )


def known_views() -> str:
    """Return the help for the views, from their table."""
    return (
        f"changes an image may undergo before a network sees it; the surrogate is trained, and images are protected, against all of them: "
        f"{views.known()}; repeat a name to give it more weight"
    )
