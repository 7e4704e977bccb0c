"""Settings as YAML: the file of `--config`, and the text that a report gives for one."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.config.schema import RunConfig

MERGE = "tag:yaml.org,2002:merge"  # of the key `<<`, which brings the settings of another section


def read(path: str) -> dict[str, Any]:
    """Return the settings in a file. Names may have dashes, as flags have, and an empty section says nothing.

    Raises:
        ValueError: the file is no YAML, or no mapping of settings, or has a setting twice; the message names the file.
        OSError: it cannot be read.
    """
    try:
        tree = _Loader(Path(path).read_bytes()).get_single_data()  # bytes, so that YAML finds out the encoding
    except (yaml.reader.ReaderError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected YAML text in UTF-8 or UTF-16") from error
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{path}: {line}{error.problem}") from error
    except ValueError as error:  # of a value such as a date, in the words of Python
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(tree, dict | None):
        raise ValueError(f"{path}: expected a mapping of settings, found {type(tree).__name__}")
    sections = {field.name for field in dataclasses.fields(RunConfig) if dataclasses.is_dataclass(field.default)}
    return {name: {} if value is None and name in sections else value for name, value in (tree or {}).items()}


def text(tree: Mapping[str, Any]) -> str:
    """Return settings as the text of such a file, in the order of the tree."""
    written: str = yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True)
    return written


class _Loader(yaml.SafeLoader):
    """A loader that writes the names of settings as Python does, and refuses one that is there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        own = [key for key, _ in node.value if key.tag != MERGE]
        names = [str(self.construct_object(key)).replace("-", "_") for key in own]
        if twice := [name for name in names if names.count(name) > 1]:
            raise yaml.constructor.ConstructorError(problem=f"{twice[0]}: given twice", problem_mark=node.start_mark)
        return {str(name).replace("-", "_"): value for name, value in super().construct_mapping(node, deep=True).items()}
