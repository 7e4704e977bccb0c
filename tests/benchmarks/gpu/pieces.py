"""The pieces of the proof in order of value: the command of each, its time, and where its card comes from.

Every release is made by `pipeline/reproduce.py`, in one run folder: its sweeps share images, surrogate and clean victims.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from pipeline.config.command_line import parse_as
from pipeline.config.schema import RunConfig
from tests.benchmarks.recipes import GRIDS, Recipe

Found = dict[str, Any]
MAIN_JOB = "pipeline/reproduce.py"
PAPER, RELEASE = "paper", "release"  # folders
TESTS = ("training", "crafting", "gradients", "countermeasures", "views", "turns", "loading", "protocol")  # first what releases need
WITHOUT_VALUES = ("-m", "tests.benchmarks.gpu.without_values")  # before a program that is to go on, whatever its values
PLAIN_STEPS = ("--surrogate.no-recorded", "--victim.no-recorded")
FIRST = "eps_levels-2"  # the point of the sweep whose release comes back
RECIPES = {  # at 8/255; all but the first need no surrogate, which would have to look through their views, so they share the paper's folder
    "sep-fa-drawn": GRIDS["gradients"]["drawn-15"],
    "colour-views": GRIDS["noise"]["colour-momentum-views"],
    **{name: recipe for name, recipe in GRIDS["noise"].items() if name.startswith("grey-patterns")},
}
SIZES = ("protect.checkpoints", "protect.steps")  # that are small in a miniature
MINIATURE = (
    *("--pack.max-train-images", "100", "--pack.max-test-images", "50", "--pack.shard-images", "25"),
    *(
        flag
        for stage in ("surrogate", "victim")
        for flag in (f"--{stage}.networks", "resnet8", f"--{stage}.epochs", "2", f"--{stage}.batch-size", "25")
    ),
    *(word for name in SIZES for word in (f"--{name}", "2")),
)


@dataclass(frozen=True)
class Options:
    """The choices of the person who runs the proof.

    Attributes:
        work: folder for the runs, the cards and the log.
        data: images, as `--data` of the main job takes them.
        victims: countermeasures of the adversaries of each recipe.
        seeds: number of trainings of each victim.
        miniature: whether sizes shrink, to try the proof without a GPU.
        no_values: whether no value counts, to try it on a device that computes nothing.
    """

    work: Path
    data: str
    victims: tuple[str, ...] = ("jpeg-10", "gaussian-blur", "grayscale")
    seeds: int = 1
    miniature: bool = False
    no_values: bool = False


@dataclass(frozen=True)
class Piece:
    """One piece of the proof.

    Attributes:
        name: of its card, and for `--pieces`.
        title: for people.
        command: the program, without the time that is left.
        results: the file that it writes.
        read: reads its results from that file; None where the file has none.
        minutes: the most that it may take.
        takes_minutes: whether the program takes `--minutes`, ends with 3 when they are used up, and goes on when it is started again.
        plain_steps: flags that train without recorded steps; none where nothing is recorded.
        environment: variables for the program.
        lacking: says why it cannot run; empty if it can.
        closes: whether it comes as soon as its input is there, even where the time is up, instead of in order.
        asked_for: whether it comes only where `--pieces` names it.
    """

    name: str
    title: str
    command: tuple[str, ...]
    results: Path
    read: Callable[[Path], Found | None]
    minutes: float = inf
    takes_minutes: bool = True
    plain_steps: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    lacking: Callable[[], str] = str
    closes: bool = False
    asked_for: bool = False

    @property
    def found(self) -> Found | None:
        """The results so far; None where there are none, or where the program was killed while it wrote them."""
        try:
            return self.read(self.results)
        except (FileNotFoundError, ValueError, ElementTree.ParseError):
            return None

    def check(self) -> None:
        """End this program with status 2 and a message where the main job would refuse its flags."""
        if MAIN_JOB in self.command:
            parse_as([*self.command[self.command.index(MAIN_JOB) + 1 :], *self.plain_steps], RunConfig, self.name, preset="paper")


def pieces(options: Options) -> list[Piece]:
    """Return all pieces, the most valuable first."""
    work, python = options.work, sys.executable
    files = (f"tests/gpu/test_{name}.py" for name in TESTS)
    first, *others = (_recipe(options, name, recipe) for name, recipe in RECIPES.items())
    return [
        Piece(
            "tests",
            "the tests that need a GPU",
            (python, "-m", "pytest", *files, "--device", "cuda", *("--no-values",) * options.no_values),
            work / "tests.xml",
            _tests,
            minutes=2,
            takes_minutes=False,
            environment={"PYTEST_ADDOPTS": f"{os.environ.get('PYTEST_ADDOPTS', '')} --junit-xml={work / 'tests.xml'}"},
        ),
        Piece(
            "bench",
            "rates and profiles",
            (python, "-m", "tests.benchmarks.gpu.bench", "--to", str(work / "bench.json"), *_small(options, ("--miniature",))),
            work / "bench.json",
            _json,
            minutes=3,
        ),
        _release(
            options, "craft-2", "the paper's protocol at 2/255, without victims", 2, flags=("--stages", "pack", "surrogate", "protect")
        ),
        _release(options, "paper-2", "the paper's protocol at 2/255", 2),
        _release(options, "paper-8", "the paper's protocol at 8/255", 8),
        first,
        _on_ray(options),
        *(replace(piece, asked_for=True) for piece in others),
        _travelling(options),
    ]


def _small(options: Options, flags: tuple[str, ...]) -> tuple[str, ...]:
    return flags if options.miniature else ()


def _recipe(options: Options, name: str, recipe: Recipe) -> Piece:
    """Return the piece of a recipe at 8/255, and of victims who do something to its images."""
    settings = [each for each in recipe.sweep if not options.miniature or each.partition("=")[0] not in SIZES]
    flags = ("--views", *recipe.views, "--victim.countermeasures", *options.victims)
    return _release(options, f"{name}-8", f"{name} at 8/255", 8, settings, flags)


def _release(options: Options, name: str, title: str, levels: int, settings: Sequence[str] = (), flags: tuple[str, ...] = ()) -> Piece:
    """Return the piece of one release and what its flags add: a sweep with one point, all in one run folder."""
    sweep = [f"protect.eps-levels={levels}", *settings]
    return _job(options, name, title, options.work / PAPER, ("--sweep", *sweep, *flags, *_small(options, MINIATURE)), sweep)


def _on_ray(options: Options) -> Piece:
    """Return the piece that shares one GPU among Ray's tasks."""
    preset = "smoke" if options.miniature else "cifar10-small"
    flags = ("--preset", preset, "--stages", "pack", "surrogate", "protect", "victim", "--executor", "ray", "--tracking-uri", "none")
    return replace(_job(options, "ray", f"the main job on Ray, {preset}", options.work / "ray", flags, []), lacking=_no_ray)


def _no_ray() -> str:
    return "" if find_spec("ray") else "Ray is not installed"


def _job(options: Options, name: str, title: str, run: Path, flags: tuple[str, ...], sweep: list[str]) -> Piece:
    """Return a piece that is the main job. It may overwrite, so that more victims can be asked for later: the others stay."""
    given = ("--data", options.data, "--run", str(run), "--overwrite", "--victim.seeds", *map(str, range(options.seeds)))
    return Piece(
        name,
        title,
        (sys.executable, *WITHOUT_VALUES * options.no_values, MAIN_JOB, *given, *flags),
        run / "card.json",
        partial(_card, sweep=sweep),
        plain_steps=PLAIN_STEPS,
        environment={"TORCHINDUCTOR_COMPILE_THREADS": "1"},  # torch may wait for its compiling processes at the end, for minutes
    )


def _travelling(options: Options) -> Piece:
    """Return the piece that makes small files of the release at 2/255."""
    run, to = options.work / PAPER, options.work / RELEASE

    def lacking() -> str:
        if options.no_values:
            return "no change of an image has a value"
        return "" if (run / "sweep" / FIRST / "protect" / "manifest.json").exists() else "the release at 2/255 is not finished"

    command = (sys.executable, "-m", "tests.benchmarks.gpu.release", "pack", str(run / "sweep" / FIRST), str(to))
    results = to / "release.json"
    return Piece(
        RELEASE, "small files of the release", command, results, _json, minutes=1, takes_minutes=False, lacking=lacking, closes=True
    )


def _card(file: Path, sweep: list[str]) -> Found | None:
    """Return a run's card, if the last start that wrote it asked for this sweep."""
    card = _json(file)
    return card if card["settings"]["sweep"] == sweep else None


def _json(file: Path) -> Found:
    found: Found = json.loads(file.read_text())
    return found


def _tests(report: Path) -> Found:
    """Return numbers of tests from pytest's report, and the first line of each failure."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    faults = {
        f"{case.get('classname')}::{case.get('name')}": fault for case in cases for fault in case if fault.tag in ("failure", "error")
    }
    return {
        "tests": len(cases),
        "skipped": sum(case.find("skipped") is not None for case in cases),
        "failed": {name: (fault.get("message") or "").partition("\n")[0] for name, fault in faults.items()},
    }
