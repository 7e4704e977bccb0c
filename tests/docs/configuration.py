"""The page of all settings, generated from the schema: `python -m tests.docs.configuration` writes docs/configuration.md."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from typing_extensions import Doc

from pipeline.config.presets import PRESETS
from pipeline.config.schema import RunConfig

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
NAMES = {int: "whole number", float: "number", str: "text", bool: "yes or no"}
# Of a number, by the end of its name; or, where that does not say it, by its full name.
UNITS = {"images": "images", "pixels": "pixels", "levels": "grey levels of 255", "mb": "MB", "minutes": "minutes", "seconds": "seconds"}
UNITS |= {"epochs": "epochs", "steps": "steps", "fraction": "share, 0 to 1"}
OWN_UNITS = {
    "pack.size": "pixels",
    "surrogate.batch_size": "images",
    "protect.batch_size": "images",
    "protect.checkpoints": "checkpoints per network",
    "protect.members_per_step": "members",
    "protect.noise_rounds": "rounds",
    "protect.patterns": "patterns",
    "protect.share": "share, 0 to 1",
    "protect.tasks_per_gpu": "shards",
    "victim.batch_size": "images",
    "victim.trials_per_gpu": "victims",
    "surrogate.initial_size": "pixels",
    "victim.initial_size": "pixels",
    "workers": "tasks or ranks",
}
INTRODUCTION = """# Configuration

Every setting of `pipeline/run.py`. This page is generated from the schema: `make docs` writes it.

A setting is a flag, or an entry of a YAML file (`--config FILE`) with the same tree, in which `--protect.eps-levels 2`
reads

```
protect:
  eps_levels: 2
```

Values come from the preset first, then from the file, then from the flags. The column *default* shows the schema's
value, which a preset may change: see [what the presets change](#what-the-presets-change). Without
`--preset` it is `quickstart`, or `photos-small` for images of your own (`--data`). `--help` shows the values in effect. A dash means
that nothing is set.
"""


@dataclass(frozen=True)
class Setting:
    """One field of the schema.

    Attributes:
        name: with its section, as `protect.eps_levels`.
        kind: its type, without the part that only says that it may be missing.
        default: of the schema.
        text: what its docstring says.
    """

    name: str
    kind: Any
    default: Any
    text: str

    @property
    def flag(self) -> str:
        """How it is given on a command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def values(self) -> str:
        """What it may be: its choices, or a type."""
        return values(self.kind)

    @property
    def unit(self) -> str:
        """Of a number; a dash where it has none."""
        if not {int, float} & set(parts(self.kind)):
            return "–"
        return OWN_UNITS.get(self.name) or UNITS.get(self.name.rpartition(".")[2].rpartition("_")[2], "–")


def parts(kind: Any) -> tuple[Any, ...]:
    """The alternatives of a type, without the one that says that it may be missing."""
    if get_origin(kind) in (Union, UnionType):
        return tuple(part for part in get_args(kind) if part is not NoneType)
    return (kind,)


def values(kind: Any) -> str:
    """A type in words."""
    said = []
    for part in parts(kind):
        if part is bool and part is not kind:  # without a value of its own it is no switch
            said.append("`True`, `False`")
        elif get_origin(part) is Literal:
            said.append(", ".join(f"`{choice}`" for choice in get_args(part)))
        elif get_origin(part) is tuple:
            said.append(f"several: {values(get_args(part)[0])}")
        else:
            said.append(NAMES[part])
    return " or ".join(said)


def shown(value: Any) -> str:
    """A value as a command line has it."""
    if value is None or value == ():
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return f"`{' '.join(map(str, value))}`"
    return f"`{value}`" if value != "" else "–"


@cache
def docstrings(kind: type) -> dict[str, str]:
    """The string below each field of a class and of its bases, on one line."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, after in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                found[ast.unparse(field.target)] = " ".join(str(after.value.value).split())
    return found


def settings(kind: type = RunConfig, prefix: str = "") -> Iterator[Setting]:
    """Every setting of a section and of the sections in it, in the order of the schema."""
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        hint, text = hints[field.name], docstrings(kind).get(field.name, "")
        if get_origin(hint) is Annotated:
            hint, *extras = get_args(hint)
            text = next((extra.documentation for extra in extras if isinstance(extra, Doc)), text)
        if is_dataclass(hint):
            assert isinstance(hint, type)
            yield from settings(hint, f"{prefix}{field.name}.")
        else:
            default = field.default if field.default_factory is MISSING else field.default_factory()
            yield Setting(f"{prefix}{field.name}", hint, default, text)


def value_in(config: Any, name: str) -> Any:
    """The value of a setting in a configuration."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def row(*cells: str) -> str:
    """A line of a table in Markdown."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def table(*lines: tuple[str, ...]) -> str:
    """A table in Markdown, the first line its head."""
    head, *rest = lines
    return "\n".join([row(*head), "|" + "---|" * len(head), *(row(*line) for line in rest)])


def page() -> str:
    """The whole page."""
    every = list(settings())
    written = [INTRODUCTION]
    for section in dict.fromkeys(setting.name.rpartition(".")[0] for setting in every):
        title = f"`{section}`" if section else "The run"
        about = inspect.getdoc(type(value_in(RunConfig(), section)) if section else RunConfig) or ""
        own = [setting for setting in every if setting.name.rpartition(".")[0] == section]
        lines = [(f"`{s.flag}`", s.values, shown(s.default), s.unit, s.text.replace("*", "\\*")) for s in own]
        written.append(f"## {title}\n\n{about.splitlines()[0]}\n\n{table(('flag', 'values', 'default', 'unit', 'meaning'), *lines)}\n")
    presets = {name: make() for name, make in PRESETS.items()}
    changed = [s for s in every if s.name not in ("preset", "run") and any(value_in(p, s.name) != s.default for p in presets.values())]
    differing = [
        (f"`{s.flag}`", shown(s.default), *("" if (v := value_in(p, s.name)) == s.default else shown(v) for p in presets.values()))
        for s in changed
    ]
    head = ("flag", "default", *(f"`{name}`" for name in presets))
    written.append(f"## What the presets change\n\nAn empty cell means the default.\n\n{table(head, *differing)}\n")
    return "\n".join(written)


def main() -> int:
    """Write the page."""
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
