"""Classes as people name them on the command line: by name, by index, or by a file that lists either."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from pipeline.config.schema import RunConfig

SHOWN = 10  # names listed in a message


def from_files(named: Sequence[str]) -> tuple[str, ...]:
    """Return a list of classes with each text file in it replaced by its lines, one class a line.

    Only a name with a suffix or a folder is taken for a file, so that a class may share its name with some other file.

    Raises:
        ValueError: a file is empty, or is not text.
    """
    expanded: list[str] = []
    for name in named:
        path = Path(name)
        if not (path.suffix or path.parent.name or path.is_absolute()) or not path.is_file():
            expanded.append(name)
            continue
        lines = class_lines(path.read_bytes(), name)
        expanded += filter(None, lines)
    return tuple(expanded)


def class_lines(data: bytes, where: str) -> tuple[str, ...]:
    """Return the lines of a text that lists classes, without the space around them, and without empty lines at the end.

    Raises:
        ValueError: the text is not UTF-8, or empty; the message begins with `where`.
    """
    try:
        lines = [line.strip() for line in io.StringIO(data.decode("utf-8-sig"), newline=None)]
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: expected a text file in UTF-8, found another encoding: save it as UTF-8") from error
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise ValueError(f"{where}: expected one class a line, found none")
    return tuple(lines)


def choose_classes(named: Sequence[str], classes: Sequence[str], flag: str) -> tuple[int, ...]:
    """Return the labels of the named classes, ascending; all labels if none is named. A name wins over an index that looks like it.

    Args:
        named: names or indices.
        classes: names of all classes, in label order.
        flag: for messages, e.g. "protect.classes".

    Raises:
        ValueError: a class is unknown, several have the same name, or one is named twice.
    """
    if not named:
        return tuple(range(len(classes)))
    labels: list[int] = []
    for name in named:
        if classes.count(name) > 1:
            raise ValueError(f"{flag}: {classes.count(name)} classes are called {name!r}: give their indices")
        if name in classes:
            label = classes.index(name)
        elif name.isdecimal() and int(name) < len(classes):
            label = int(name)
        else:
            known = ", ".join(classes[:SHOWN]) + (", ..." if len(classes) > SHOWN else "")
            raise ValueError(
                f"{flag}: {name!r} is no class; expected a name ({known}), an index from 0 to {len(classes) - 1}, "
                "or an existing file that lists them"
            )
        if label in labels:
            raise ValueError(f"{flag}: class {classes[label]!r} is named twice")
        labels.append(label)
    return tuple(sorted(labels))


def portion(share: float, count: int) -> int:
    """Return how many of so many images of a class are protected, where it is a share of them: rounded, and a half up."""
    return int(share * count + 0.5)


def protected_classes(config: RunConfig, classes: Sequence[str]) -> tuple[int, ...]:
    """Return the labels of the classes that `--protect.classes` names, ascending.

    Raises:
        ValueError: a class is unknown, or only one is named and the method needs a wrong class among the protected ones.
    """
    protect = config.protect
    labels = choose_classes(protect.classes, classes, "protect.classes")
    if len(labels) < 2 and protect.targets != "untargeted" and protect.kind.targets:
        raise ValueError("protect.classes: wrong classes are chosen among the protected ones, which must be at least 2; got 1")
    return labels
