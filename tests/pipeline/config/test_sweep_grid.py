"""Points of a sweep: every combination of the values, typed as by the flags. Impossible sweeps are refused before anything starts."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from pipeline.config.command_line import parse
from pipeline.config.presets import preset
from pipeline.config.schema import RunConfig
from pipeline.config.sweep_grid import grid
from pipeline.plan import main as plan


def asked(*sweep: str) -> RunConfig:
    return replace(preset("quickstart"), sweep=sweep)


def test_points_are_all_combinations_and_differ_in_nothing_else() -> None:
    config = asked("protect.steps=5,10", "protect.checkpoints=1,5,15")
    points = grid(config)
    assert {(point.config.protect.steps, point.config.protect.checkpoints) for point in points} == {
        (steps, checkpoints) for steps in (5, 10) for checkpoints in (1, 5, 15)
    }
    for point in points:
        chosen = point.config.protect
        assert point.name == f"steps-{chosen.steps}_checkpoints-{chosen.checkpoints}"
        assert point.settings == {"protect.steps": chosen.steps, "protect.checkpoints": chosen.checkpoints}
        same = replace(chosen, steps=config.protect.steps, checkpoints=config.protect.checkpoints)
        assert replace(point.config, protect=same, sweep=config.sweep) == config


def test_no_order_makes_other_points() -> None:
    points = grid(asked("protect.steps=5,10", "protect.checkpoints=1,5"))
    others = grid(asked("protect.checkpoints=5,1", "protect.steps=10,5"))
    assert {point.name: point for point in points} == {point.name: point for point in others}


def test_values_are_typed_as_the_flags_are() -> None:
    for sweep, field, values in (
        ("protect.eps-levels=2,8", "eps_levels", {2, 8}),
        ("protect.method=sep,tap", "method", {"sep", "tap"}),
        ("protect.batch_size=auto,7", "batch_size", {"auto", 7}),
        ("protect.epochs=3,1+4", "epochs", {(3,), (1, 4)}),
    ):
        assert {getattr(point.config.protect, field) for point in grid(asked(sweep))} == values
    assert [point.name for point in grid(asked("protect.epochs=3,1+4"))] == ["epochs-3", "epochs-1+4"]
    assert grid(asked("protect.epochs=1+4"))[0].settings == {"protect.epochs": [1, 4]}


def test_long_values_are_cut_in_names_and_nowhere_else() -> None:
    """Two files of class names give such values: alike for hundreds of characters, and together too long for a file name."""
    many = [f"class-number-{number}" for number in range(50)]
    lists = ["+".join([*many, last]) for last in ("wolf", "bear")]
    points = grid(asked(f"protect.classes={','.join(lists)}", "protect.steps=5"))
    assert [point.settings["protect.classes"] for point in points] == [[*many, last] for last in ("wolf", "bear")]
    assert len({point.name for point in points}) == 2
    for point in points:
        assert re.fullmatch(r"steps-5_classes-class-number-0\+class-number-1\+.*-[0-9a-f]{10}", point.name)
        assert len(point.name) == len("steps-5_classes-") + 60
    again = grid(asked("protect.steps=5", f"protect.classes={lists[1]},{lists[0]}"))
    assert {point.name for point in again} == {point.name for point in points}
    assert grid(asked(f"protect.classes={'a' * 60}"))[0].name == f"classes-{'a' * 60}"


def test_many_values_are_no_longer_than_a_filesystem_takes() -> None:
    fields = {"method": "sep", "eps-levels": "8", "steps": "5", "checkpoints": "15", "inner-steps": "1", "targets": "shift"}
    fields |= {"precision": "float32", "batch-size": "512", "tasks-per-gpu": "1,2"}
    fields |= {"epochs": "+".join(map(str, range(15))), "classes": "+".join(f"class-number-{number}" for number in range(50))}
    points = grid(asked(*(f"protect.{field}={values}" for field, values in fields.items())))
    assert [len(point.name) for point in points] == [200, 200]
    assert points[0].name != points[1].name


@pytest.mark.parametrize(
    ("sweep", "word"),
    [
        (["surrogate.epochs=5,10"], "'surrogate.epochs' cannot be swept; what can is protect.method, protect.eps-levels"),
        (["protect.stepps=5"], "protect.steps"),
        (["victim.seeds=1,2"], "cannot be swept"),
        (["steps=5"], "cannot be swept"),
        (["protect.steps"], "values separated by commas, and not ''"),
        (["protect.steps=5,"], "values separated by commas, and not ''"),
        (["protect.steps=five"], "not 'five'"),
        (["protect.method=sep,magic"], "not 'magic': expected one of 'sep'"),
        (["protect.steps=5", "protect.steps=10"], "given twice"),
        (["protect.steps=5,05"], "each value once"),
        (["protect.steps=0,5"], "steps-0: protect: steps must be at least 1, got 0"),
        (
            ["protect.steps=5,10", "protect.checkpoints=5,16"],
            "steps-5_checkpoints-16: protect.checkpoints = 16 needs as many surrogate epochs",
        ),
        (["protect.epochs=3,15"], "epochs-15: protect.epochs are counted from 0 to 14"),
        (["protect.method=error-min-class,noise", "protect.steps=5,10"], "steps: not read by error-min-class, noise: leave it out"),
        (["protect.method=tap", "protect.checkpoints=1,5"], "checkpoints: not read by tap"),
    ],
)
def test_what_cannot_be_swept_is_wrong_usage(sweep: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(["--sweep", *sweep])
    assert stopped.value.code == 2
    assert word in capsys.readouterr().err


def test_every_impossible_point_is_counted() -> None:
    with pytest.raises(ValueError, match=r"; and 2 more$"):
        grid(asked("protect.checkpoints=16,17,18,19,20"))


def test_goes_with_neither_an_addition_nor_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    for ends in (lambda: parse(["--sweep", "protect.steps=5", "--add", "more"]), lambda: plan(["--sweep", "protect.steps=5"])):
        with pytest.raises(SystemExit) as stopped:
            ends()
        assert stopped.value.code == 2
    assert "--sweep and --add do not go together" in capsys.readouterr().err
