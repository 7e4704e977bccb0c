"""One reading of a run: no page or log opens a file twice, and large tables are streamed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.config.schema import RunConfig
from pipeline.pages.canvas import DARK, LIGHT
from pipeline.pages.gallery import drawings
from pipeline.pages.page import render
from pipeline.results import samples
from pipeline.results.findings import findings
from pipeline.results.run_results import RunResults
from pipeline.results.summary import headline, summary
from pipeline.shards import tables
from pipeline.shards.tables import read_table
from pipeline.stages import sequence
from pipeline.storage.folder import Folder
from pipeline.tracking.mlflow_store import MetricsAtStep
from pipeline.tracking.outbox import Outbox
from pipeline.tracking.tracker import MlflowTracker, NoTracker
from tests.fixtures import finished_run
from tests.fixtures.executors import LOCAL


@pytest.fixture(scope="module")
def mixed_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Folder]:
    """A run with two surrogates, two victim networks and an unprotected class, so that every file has content."""
    path = tmp_path_factory.mktemp("runs") / "mixed"
    return finished_run.write(path, config=finished_run.mixed_configuration(path))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """A count of openings for each file."""
    counts: Counter[str] = Counter()
    stream = Folder.stream

    @contextmanager
    def counted(folder: Folder, name: str) -> Iterator[Any]:
        counts[folder.file(name).partition("/mixed/")[2]] += 1
        with stream(folder, name) as file:
            yield file

    monkeypatch.setattr(Folder, "stream", counted)
    return counts


def test_whatever_is_shown_opens_each_file_once(mixed_run: tuple[RunConfig, Folder], opened: Counter[str]) -> None:
    config, folder = mixed_run
    results = RunResults.read(folder)
    assert set(opened) == {f"{stage}/manifest.json" for stage in finished_run.STAGES} | {"victim/results.parquet"}
    pictures = drawings(results)
    drawn = {theme: {name: draw(colours) for name, draw in pictures.items()} for theme, colours in (("light", LIGHT), ("dark", DARK))}
    assert render(config, results, drawn)
    assert headline(results)
    assert summary(config, results)
    assert findings(results)
    tables_read = {"pack/samples.parquet", "pack/quarantine.parquet", "protect/samples.parquet"}
    assert opened.keys() >= tables_read | {"surrogate/checkpoints.json", "protect/similarity.json", "protect/train-000000.tar"}
    assert set(opened.values()) == {1}


def test_the_tracker_opens_each_file_once(
    mixed_run: tuple[RunConfig, Folder], opened: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = mixed_run
    logged: dict[str, list[MetricsAtStep]] = {}
    store = MagicMock(uri="sqlite:///elsewhere.db", artifacts=None, outbox=Outbox("elsewhere"))
    store.experiment.return_value, store.commit_of.return_value = "1", None
    store.create.side_effect = map(str, range(100))
    store.log_points.side_effect = lambda run, points: logged.setdefault(run, []).extend(points)
    store.curve.side_effect = lambda run, metric: logged.get(run, [])
    monkeypatch.setattr("pipeline.tracking.parent_run.Store", lambda uri: store)
    results = RunResults.read(folder)
    tracker = MlflowTracker(replace(config, tracking_uri="sqlite:///elsewhere.db"), folder)
    for stage in finished_run.STAGES:
        tracker.log_stage(stage, results)
    assert store.create.call_count == 1 + 2 + 1 + 4  # parent, surrogates, protect, victims
    assert opened.pop("tracking.json", 0) <= 1
    for stage in ("pack", "protect"):
        assert opened.pop(f"{stage}/train-000000.tar") == 2  # for the figures, and for the samples as images
    assert opened.keys() >= {"protect/samples.parquet", "pack/samples.parquet", "victim/resnet8-clean-none-seed0.json"}
    assert set(opened.values()) == {1}


def test_the_end_of_a_stage_reads_a_run_once_and_no_large_table(
    mixed_run: tuple[RunConfig, Folder], opened: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = mixed_run
    manifest = RunResults.read(folder).manifests["victim"]
    opened.clear()
    monkeypatch.setitem(sequence.RUN, "report", lambda config, folder, executor: manifest)
    sequence.run_stages(config, folder, NoTracker(), LOCAL, ["report"])
    assert set(opened) == {f"{stage}/manifest.json" for stage in finished_run.STAGES} | {"victim/results.parquet"}
    assert set(opened.values()) == {1}


def test_batches_add_up_to_the_whole_table(mixed_run: tuple[RunConfig, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = mixed_run
    monkeypatch.setattr(samples, "OF_SPECTRUM", 7)
    table = read_table(folder.child("protect"), "samples.parquet")
    pq.write_table(table, tmp_path / "samples.parquet", row_group_size=10)
    whole = samples.ProtectedSamples.read(folder.child("protect"))
    monkeypatch.setattr(tables, "BATCH", 4)
    parts = samples.ProtectedSamples.read(Folder.open(str(tmp_path)))
    assert (parts.first, parts.changed) == (whole.first, whole.changed)
    assert len(parts.changed) == 7
    changed = [row for row in table.to_pylist() if row["linf_levels"]]
    for name in samples.MEASURES:
        np.testing.assert_array_equal(parts.measures[name], np.array([row[name] for row in changed], np.float32))
