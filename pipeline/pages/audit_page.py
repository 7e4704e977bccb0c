"""The page of an audit, which needs no server and makes no request."""

from __future__ import annotations

from functools import partial

from pipeline.pages import html
from pipeline.results.audit import WORDS, Audit
from pipeline.results.outcomes import Outcome
from pipeline.results.thresholds import interval
from sep.views.registry import PLAIN

GROUPS = {
    "Undone by": Outcome.UNDONE,
    "Weakened by": Outcome.WEAKENED,
    "Holds against": Outcome.HOLDS,
    "Says nothing of": Outcome.UNKNOWN,
}


def render(audit: Audit, command: str) -> str:
    """Return the page; `command` goes on with the audit."""
    results = audit.results
    views = results.count("protect", "views") or [*PLAIN]
    return html.render(
        "audit.html.j2",
        title=results.folder.path.rstrip("/").rsplit("/", 1)[-1],
        audit=audit,
        method=results.count("protect", "method"),
        views=views if views != [*PLAIN] else [],
        release=results.manifests["protect"].digest[:12],
        groups=[(title, audit.named(outcome)) for title, outcome in GROUPS.items()],
        networks=len({pair.clean.network for pair in results.of_release}),
        words=WORDS,
        interval=partial(interval, tests=results.measured_images),
        command=command,
    )
