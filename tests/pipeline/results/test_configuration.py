"""The recorded configuration of a run: neither its executor nor its time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.config.presets import preset
from pipeline.results.commands import command
from pipeline.results.run_results import RunResults
from pipeline.storage.folder import Folder


def test_the_executor_and_its_time_are_no_part_of_what_a_run_is(tmp_path: Path) -> None:
    """The identity in MLflow, `config.json` and the printed command come from this record."""
    config, results = preset("smoke"), RunResults.read(Folder.open(str(tmp_path)))
    other = replace(config, executor="local", minutes=9.0, tracking_uri="none")
    assert results.configuration(config) == results.configuration(other)
    assert not {"executor", "minutes", "tracking_uri"} & results.configuration(other).keys()
    assert command(results.configuration(other)) == "python pipeline/run.py --preset smoke"
