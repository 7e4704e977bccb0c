"""The recorded configuration of a run: nothing that only decides how fast, or what one start does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.config.marks import Mark, marked
from pipeline.config.presets import preset
from pipeline.config.schema import RunConfig
from pipeline.results.commands import command
from pipeline.results.run_results import RunResults
from pipeline.storage.folder import Folder
from pipeline.storage.records import flatten


def test_what_decides_nothing_is_no_part_of_what_a_run_is(tmp_path: Path) -> None:
    """The identity in MLflow, cards and the printed command come from this record."""
    config, results = preset("smoke"), RunResults.read(Folder.open(str(tmp_path)))
    other = replace(config, executor="local", minutes=9.0, tracking_uri="none", workers=3, cache_gb=1, overwrite=True)
    other = replace(other, protect=replace(config.protect, batch_size=5))
    assert results.configuration(config) == results.configuration(other)
    assert not set(marked(RunConfig, Mark.SPEED, Mark.START)) & flatten(results.configuration(other)).keys()
    assert command(results.configuration(other)) == "python pipeline/run.py --preset smoke"
