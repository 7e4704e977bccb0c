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
import torch

from pipeline.config.presets import preset
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
from pipeline.stages import job, report, sequence
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


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """A tracking store that takes everything and writes nothing."""
    logged: dict[str, list[MetricsAtStep]] = {}
    store = MagicMock(uri="sqlite:///elsewhere.db", artifacts=None, outbox=Outbox("elsewhere"))
    store.experiment.return_value, store.commit_of.return_value = "1", None
    store.create.side_effect = map(str, range(100))
    store.log_points.side_effect = lambda run, points: logged.setdefault(run, []).extend(points)
    store.curve.side_effect = lambda run, metric: logged.get(run, [])
    monkeypatch.setattr("pipeline.tracking.parent_run.Store", lambda uri: store)
    return store


def test_the_tracker_opens_each_file_once(mixed_run: tuple[RunConfig, Folder], opened: Counter[str], store: MagicMock) -> None:
    config, folder = mixed_run
    results = RunResults.read(folder)
    tracker = MlflowTracker(replace(config, tracking_uri="sqlite:///elsewhere.db"), folder)
    for stage in finished_run.STAGES:
        tracker.log_stage(stage, results)
    assert store.create.call_count == 1 + 2 + 1 + 4  # parent, surrogates, protect, victims
    assert opened.pop("tracking.json", 0) <= 1
    assert opened.keys() >= {"pack/train-000000.tar", "protect/train-000000.tar"}
    assert opened.keys() >= {"protect/samples.parquet", "pack/samples.parquet", "victim/resnet8-clean-none-seed0.json"}
    assert set(opened.values()) == {1}


def test_the_end_of_a_stage_reads_a_run_once_and_no_large_table(
    mixed_run: tuple[RunConfig, Folder], opened: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = mixed_run
    monkeypatch.setattr(report, "write", lambda config, results: None)
    sequence.run_stages(config, folder, NoTracker(), LOCAL, ["report"])
    assert set(opened) == {f"{stage}/manifest.json" for stage in finished_run.STAGES} | {"victim/results.parquet"}
    assert set(opened.values()) == {1}


def test_a_whole_run_reads_again_only_what_has_changed(tmp_path: Path, opened: Counter[str], store: MagicMock) -> None:
    base = replace(preset("smoke"), run=str(tmp_path / "mixed"), executor="local", tracking_uri=store.uri)
    config = replace(
        base,
        pack=replace(base.pack, max_train_images=40, max_test_images=20),
        surrogate=replace(base.surrogate, epochs=1),
        protect=replace(base.protect, checkpoints=1),
        victim=replace(base.victim, epochs=1),
    )
    threads = torch.get_num_threads()
    text, faults = job.run(config)
    torch.set_num_threads(threads)
    assert not faults
    assert "report/index.html" in text
    assert store.log_images.call_count == 2
    manifests = {f"{stage}/manifest.json": opened.pop(f"{stage}/manifest.json") for stage in (*finished_run.STAGES, "report")}
    assert manifests == {
        "pack/manifest.json": 5,  # the surrogate, the crafting, its worker, the victims; and once for all that is shown
        "surrogate/manifest.json": 3,  # the crafting, its worker, and what is shown
        "protect/manifest.json": 2,  # the victims, and what is shown
        "victim/manifest.json": 1,
        "report/manifest.json": 1,
    }
    assert opened["protect/train-000000.tar"] == 3  # checked when it was written, shown, and trained on
    tables = {name: count for name, count in opened.items() if name.endswith((".parquet", "similarity.json")) and "/parts/" not in name}
    assert tables == {"protect/samples.parquet": 1, "pack/quarantine.parquet": 1, "protect/similarity.json": 1, "victim/results.parquet": 1}
    assert {opened[name] for name in ("verified.json", "detection.json", "audit/card.json")} == {2}  # after protection and after victims


def test_results_after_each_stage_are_those_on_storage(tmp_path: Path) -> None:
    config = finished_run.configuration(tmp_path / "run")
    folder = Folder.open(config.run)
    results = RunResults.read(folder)
    for stage in finished_run.STAGES:
        finished_run.write(tmp_path / "run", (stage,), config)
        results = results.after(stage)
        assert results == RunResults.read(folder)
    assert headline(results)
    assert results.after("report").samples is results.samples
    assert results.before("protect").manifests.keys() == {"pack", "surrogate"}
    assert not results.before("victim").trials
    finished_run.write(tmp_path / "run", ("protect",), replace(config, protect=replace(config.protect, steps=2), overwrite=True))
    redone = results.after("protect")
    assert redone == RunResults.read(folder)
    assert redone.left_out.keys() == {"victim"}
    assert redone.samples is not results.samples
    finished_run.write(tmp_path / "run", ("protect",), replace(config, overwrite=True))
    assert redone.after("protect") == RunResults.read(folder)
    assert redone.after("protect").trials == results.trials


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
