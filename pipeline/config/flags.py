"""Flags that cannot be read, in one line: the setting, what was expected, what came, and what to do."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from itertools import takewhile
from typing import Any, TypeVar

import tyro
from pydantic import TypeAdapter, ValidationError

from pipeline.config.faults import one_line
from pipeline.storage.records import flatten

Parsed = TypeVar("Parsed")
FRAME = re.compile(r"^[ │] | *[│]?$")  # of a line in the box that tyro prints, which outside UTF-8 has no frame
RULE = re.compile(r" *[─-]{8}")


def read(kind: Callable[..., Parsed], program: str, arguments: Sequence[str] | None, default: Any = None) -> Parsed:
    """Return what tyro makes of the flags; help is printed as it is.

    Args:
        kind: a configuration class, or a function to call.
        program: name of the program, for messages.
        arguments: by default those of this process.
        default: a configuration with the values of the flags that are not given.

    Raises:
        ValidationError: a value is refused by the configuration.
        ValueError: a flag is unknown, or its value is of another type; one line.
    """
    printed = io.StringIO()
    given = sys.argv[1:] if arguments is None else arguments
    try:
        with contextlib.redirect_stderr(printed):
            if default is None:
                return tyro.cli(kind, prog=program, args=given)
            return tyro.cli(kind, prog=program, args=given, default=default)
    except SystemExit as stopped:
        if not stopped.code:  # help
            raise
        refused: BaseException | None = stopped
        while refused and not isinstance(refused, ValidationError):
            refused = refused.__context__
        if refused:
            raise refused from None
        explained = None if default is None else explain(given, default)
        raise ValueError(explained or _unboxed(printed.getvalue())) from None


def call(function: Callable[..., int], program: str, arguments: Sequence[str] | None) -> int:
    """Call a function with the flags that its signature asks for, and return its exit code: 2 where they cannot be read."""

    @functools.wraps(function)
    def later(*values: Any, **named: Any) -> Callable[[], int]:
        return functools.partial(function, *values, **named)

    try:
        ready = read(later, program, arguments)
    except ValueError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    return ready()


def explain(arguments: Sequence[str], default: Any) -> str | None:
    """Say what is wrong with the flags of a configuration; None if nothing is found.

    Values are checked as those of a file are, so that both are refused in the same words.
    """
    tree = TypeAdapter(type(default)).dump_python(default, mode="json")
    known = flatten(tree)
    for name, values in _flags(arguments):
        if name is None:
            return f"expected flags, as in --data FOLDER; got {values[0]!r}: --help lists all"
        on = name.removeprefix("no_") if name.startswith("no_") else name.replace(".no_", ".")
        if on in known and isinstance(known[on], bool):
            if values:
                return f"{_dashed(on)}: expected no value, as --{_dashed(on)} alone means yes; got {' '.join(values)}"
            continue
        if name not in known:
            return f"{_dashed(name)}: no such setting: {_suggestion(name, list(known))}"
        several = isinstance(known[name], list)
        if not several and len(values) != 1:
            return f"{_dashed(name)}: expected one value; got {' '.join(values) or 'nothing'}"
        *above, last = name.split(".")
        section = functools.reduce(lambda node, part: node[part], above, tree)
        section[last] = values if several else None if values == ["None"] else values[0]
    try:
        TypeAdapter(type(default)).validate_python(tree)
    except ValidationError as error:
        return one_line(error, tree)
    return None


def _flags(arguments: Sequence[str]) -> Iterator[tuple[str | None, list[str]]]:
    """Yield the name of each flag in Python's spelling, with its values; no name for values before the first flag."""
    name: str | None = None
    values: list[str] = []
    for word in arguments:
        if word.startswith("--"):
            if name or values:
                yield name, values
            flag, equals, value = word[2:].partition("=")
            name, values = flag.replace("-", "_"), [value] if equals else []
        else:
            values.append(word)
    if name or values:
        yield name, values


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _suggestion(name: str, known: Sequence[str]) -> str:
    near = [each for each in known if each.rpartition(".")[2] == name.rpartition(".")[2]] or get_close_matches(name, known, n=1)
    return f"did you mean {' or '.join(f'--{_dashed(each)}' for each in near)}?" if near else "--help lists all"


def _unboxed(printed: str) -> str:
    """Return the first paragraph of a box in one line, without its title and the descriptions of flags."""
    lines = [FRAME.sub("", line) for line in printed.splitlines()[1:]]
    lines = lines[1:] if RULE.match(lines[0]) else lines
    paragraph = takewhile(lambda line: not RULE.match(line), lines)
    text = " ".join(" ".join(line for line in paragraph if not line.startswith(" " * 8)).split())
    text = re.sub(r"^Missing from [^:]*", "missing", text).replace("Unrecognized options", "no such option")
    return f"{text.removesuffix('.')}: --help lists all"
