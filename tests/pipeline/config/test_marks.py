"""Marks on fields: a setting that only decides speed changes no stage, no identity in MLflow and no printed command."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

import pytest

from pipeline.config.marks import Mark, marked, without
from pipeline.config.schema import ProtectConfig, RunConfig, SurrogateConfig, VictimConfig, deciding, to_tree
from pipeline.results.commands import command
from pipeline.storage.records import flatten

OTHER: dict[str, Any] = {  # a value other than the default, for every field marked SPEED
    "workers": 3,
    "cache_gb": 7.0,
    "surrogate.recorded": False,
    "protect.batch_size": 5,
    "protect.tasks_per_gpu": 2,
    "victim.recorded": False,
    "victim.trials_per_gpu": 4,
}


def changed(config: RunConfig, names: tuple[str, ...]) -> RunConfig:
    """Return the configuration with another value for each of these settings."""
    for name in names:
        section, _, field = name.rpartition(".")
        own = {field: OTHER[name]}
        config = replace(config, **({section: replace(getattr(config, section), **own)} if section else own))
    return config


def test_marks_are_found_in_sections_and_in_what_a_section_inherits() -> None:
    @dataclass
    class Base:
        plain: int = 0
        fast: Annotated[int, "a note", Mark.SPEED] = 0

    @dataclass
    class Section(Base):
        start: Annotated[int | None, Mark.START] = None

    assert marked(Section) == ("fast", "start")
    assert marked(Section, Mark.SPEED) == ("fast",)
    assert without({"a": 1, "b": {"a": 2, "c": 3}, "c": 4}, ("a", "b.c")) == {"b": {"a": 2}, "c": 4}


def test_every_setting_that_only_decides_how_fast_is_looked_at_here() -> None:
    assert set(marked(RunConfig, Mark.SPEED)) - {"executor"} == OTHER.keys()
    assert set(marked(RunConfig, Mark.START)) >= {"add", "sweep", "stages", "keep_going", "overwrite", "tracking_uri"}


@pytest.mark.parametrize("section", [SurrogateConfig(), ProtectConfig(), VictimConfig()])
def test_a_stage_records_none_of_them(section: SurrogateConfig | ProtectConfig | VictimConfig) -> None:
    whole, recorded = to_tree(section), deciding(section)
    assert whole.keys() - recorded.keys() == set(marked(type(section), Mark.SPEED))
    assert recorded.items() <= whole.items()


def test_a_printed_command_has_none_of_them() -> None:
    plain = RunConfig()
    other = changed(plain, tuple(OTHER))
    assert flatten(to_tree(other)).items() >= OTHER.items()
    assert command(to_tree(other)) == command(to_tree(plain))
    assert "--memory-limit-mb 7" in command(to_tree(replace(plain, memory_limit_mb=7)))  # decides whether images stream
    assert "--protect.steps 7" in command(to_tree(replace(other, protect=replace(other.protect, steps=7))))
