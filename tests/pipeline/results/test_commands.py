"""The page of a point of a sweep: the command and the settings on it make exactly that point, and write nowhere else."""

from __future__ import annotations

import html
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipeline.config.command_line import parse
from pipeline.config.presets import from_tree, preset
from pipeline.config.schema import RunConfig, to_tree
from pipeline.config.sweep_grid import grid
from pipeline.results import commands
from pipeline.stages import report
from pipeline.storage.folder import Folder
from pipeline.storage.run import begin
from tests.fixtures import finished_run


@pytest.fixture(scope="module")
def point_page(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, str]:
    """The configuration of a sweep of one point, and the page of that point."""
    path = tmp_path_factory.mktemp("runs") / "run"
    config, folder = finished_run.write(path, ("pack", "surrogate"))
    config = replace(config, sweep=("protect.steps=2", "protect.eps-levels=4"))
    (wanted,) = grid(config)
    own = begin(folder, wanted.name, wanted.settings)
    finished_run.write(Path(own.path), ("protect", "victim"), wanted.config)
    report.execute(wanted.config, own)
    return config, own.read("report/index.html").decode()


def shown(page: str, name: str) -> str:
    """Return the text below that name on the page."""
    found = re.search(rf"<summary>{re.escape(name)}</summary><pre>(.*?)</pre>", page, re.DOTALL)
    assert found
    return html.unescape(found[1])


def test_its_command_and_its_settings_ask_for_this_point_of_the_sweep(point_page: tuple[RunConfig, str]) -> None:
    config, page = point_page
    command = shlex.split(shown(page, "Command"))
    at = command.index("--sweep")
    assert command[at : at + 3] == ["--sweep", "protect.eps-levels=4", "protect.steps=2"]
    assert not {"--protect.steps", "--protect.eps-levels"} & set(command)
    settings = from_tree(yaml.safe_load(shown(page, "Configuration (a file for --config)")))
    assert grid(parse(command[2:])) == grid(config)
    assert grid(settings) == grid(replace(config, protect=config.protect.resolved()))
    assert parse(command[2:]).run == settings.run == config.run


def test_the_page_of_a_run_sweeps_nothing(tmp_path: Path, point_page: tuple[RunConfig, str]) -> None:
    path = tmp_path / "run"
    shutil.copytree(point_page[0].run, path, ignore=shutil.ignore_patterns("sweep"))
    report.execute(replace(point_page[0], run=str(path)), Folder.open(str(path)))
    page = (path / "report" / "index.html").read_text()
    assert "--sweep" not in shown(page, "Command")


def test_flags_stay_where_the_rest_would_be_no_configuration() -> None:
    """Without its flag, the number of checkpoints would be the preset's fifteen, which need more epochs."""
    base = preset("quickstart")
    few = replace(base, surrogate=replace(base.surrogate, epochs=5), protect=replace(base.protect, checkpoints=1))
    tree = to_tree(few) | {"sweep": ["protect.checkpoints=1"]}
    (point,) = grid(parse(shlex.split(commands.command(tree))[2:]))
    assert to_tree(point.config.protect) == to_tree(few.protect)
