"""Commands that a run prints: they work when pasted into a shell, from the folder of the project."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.config.marks import Mark, marked
from pipeline.config.presets import from_tree, preset
from pipeline.config.schema import RunConfig, to_tree
from pipeline.storage.records import flatten

PROJECT = Path(__file__).resolve().parents[2]
# These settings decide nothing about what is made, but two: which stages there are, and which point of a sweep it is.
UNTOLD = {"preset", *marked(RunConfig, Mark.SPEED, Mark.START)} - {"stages", "sweep"}


def command(tree: Mapping[str, Any]) -> str:
    """Return the command that asks for these settings: the preset, and a flag for each value that differs from it.

    Settings that decide only how fast, or what one start does, are left out: the command makes the same on another machine.
    """
    asked, skipped = preset(tree["preset"]), UNTOLD | _told_by_sweep(tree)
    usual = replace(asked.protect, method=tree["protect"]["method"]).resolved()
    base = flatten({**to_tree(asked), "protect": {**to_tree(usual), "method": asked.protect.method}})
    words = ["python", "pipeline/run.py", "--preset", tree["preset"]]
    for name, value in flatten(dict(tree)).items():
        if name not in skipped and value != base[name]:
            words += [f"--{name.replace('_', '-')}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return shlex.join(words)


def same_way(config: RunConfig) -> str:
    """Return the flags with which another start computes as this one does, and logs to the same place; each begins with a blank."""
    mine, usual = flatten(to_tree(config)), flatten(to_tree(preset(config.preset)))
    words = []
    for name in (*marked(RunConfig, Mark.SPEED), "tracking_uri"):
        value, (section, dot, last) = mine[name], name.replace("_", "-").rpartition(".")
        if value == usual[name]:
            continue
        if isinstance(value, bool):
            words.append(f"--{section}{dot}{'' if value else 'no-'}{last}")
        else:
            words += [f"--{section}{dot}{last}", str(value)]
    return "".join(f" {shlex.quote(word)}" for word in words)


def _told_by_sweep(tree: Mapping[str, Any]) -> set[str]:
    """Return the swept settings that need no flag besides; none where the preset's values of them do not go with the other settings."""
    swept = {text.partition("=")[0].replace("-", "_") for text in tree.get("sweep", ())}
    others = {name: value for name, value in tree["protect"].items() if f"protect.{name}" not in swept}
    try:
        from_tree({**tree, "protect": others})
    except ValueError:
        return set()
    return swept


def here(line: str) -> str:
    """Return a command for the folder and the Python of this process, where `python` or `pipeline` mean something else here.

    Args:
        line: begins with `python pipeline/`, with `python -m` or with `make`.
    """
    words = shlex.split(line)
    at_home = Path.cwd() == PROJECT
    if words[0] == "make":
        return line if at_home else shlex.join(["make", "-C", str(PROJECT), *words[1:]])
    found = shutil.which("python")
    words[0] = "python" if found and os.path.realpath(found) == os.path.realpath(sys.executable) and _same_site(found) else sys.executable
    words[1] = words[1] if at_home or words[1] == "-m" else str(PROJECT / words[1])
    return shlex.join(words)


def _same_site(python: str) -> bool:
    """Return whether an interpreter sees the packages of this one: those of one environment share a folder."""
    return os.path.dirname(os.path.abspath(python)) == os.path.dirname(os.path.abspath(sys.executable))
