from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Callable
from pkgutil import resolve_name

import pytest

from pipeline import console
from tests import ROOT


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in console.COMMANDS)


def test_every_command_is_a_script_and_the_script_is_installed() -> None:
    scripts = {path.stem for path in (ROOT / "pipeline").glob("*.py") if '"__main__"' in path.read_text()}
    assert scripts == console.COMMANDS.keys()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"sep": "pipeline.console:main"}


@pytest.mark.parametrize("arguments", [[], ["protect"], ["--run", "here"]])
def test_anything_else_is_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(arguments) == 2
    said = capsys.readouterr()
    assert all(name in said.out + said.err for name in console.COMMANDS)
    assert len(said.err.splitlines()) == bool(arguments)


def test_a_command_gets_the_rest_of_the_line_and_gives_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["verify", "--run", "/nowhere/at/all"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("sep verify: ")
    assert "/nowhere/at/all" in said


@pytest.mark.parametrize("name", console.COMMANDS)
def test_a_command_calls_itself_as_it_was_called(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main: Callable[[list[str]], int] = resolve_name(f"pipeline.{name}:main")
    for call, arguments, program in ((main, [], f"{name}.py"), (console.main, [name], f"sep {name}")):
        with pytest.raises(SystemExit, match="0"):
            call([*arguments, "--help"])
        assert capsys.readouterr().out.startswith(f"usage: {program} [")


def test_the_list_of_commands_loads_none_of_them() -> None:
    program = "import sys, pipeline.console; print(sorted(m for m in sys.modules if m.startswith(('pipeline', 'torch', 'pyarrow'))))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "['pipeline', 'pipeline.console']"
