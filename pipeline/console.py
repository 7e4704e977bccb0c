"""The console script `sep`: all commands under one name. `sep run ...` is `python pipeline/run.py ...`.

A command is imported when it is asked for, so that the list of them appears at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pkgutil import resolve_name

COMMANDS = {
    "run": "protect an image data set, and measure the protection",
    "audit": "train adversaries against a release, for one verdict",
    "certify": "bound what networks near one trained on a release can learn",
    "verify": "check a run from its files alone",
    "detect": "measure how well a release is told apart from clean images",
    "export": "write the protected images as a folder of image files",
    "compare": "show several runs side by side",
    "plan": "estimate time, machines and storage of a run without starting it",
    "reproduce": "follow the paper's protocol on one machine",
    "ui": "open MLflow on a run",
}
HELP = "\n".join(
    [
        "usage: sep COMMAND [flags]",
        "",
        "Protect image data sets before release: Self-Ensemble Protection.",
        "",
        *(f"  {name:<11}{text}" for name, text in COMMANDS.items()),
        "",
        "sep COMMAND --help lists the flags of a command.",
    ]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Start a command and return its exit code: 0 done, 1 failed, 2 wrong usage, 3 the time of `--minutes` was up."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help"):
        print(HELP)
        return 0 if given else 2
    name, *rest = given
    if name not in COMMANDS:
        print(f"sep: unknown command {name!r}; expected one of {', '.join(COMMANDS)} (sep --help)", file=sys.stderr)
        return 2
    command: Callable[[Sequence[str], str], int] = resolve_name(f"pipeline.{name}:main")
    return command(rest, f"sep {name}")
