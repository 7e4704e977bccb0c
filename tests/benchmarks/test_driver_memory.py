"""The made-up run of the memory benchmark is a run like any other, and its tables are as long as asked for."""

from __future__ import annotations

from pathlib import Path

from pipeline.pages.gallery import drawings
from pipeline.results.findings import findings
from pipeline.results.run_results import RunResults
from pipeline.results.summary import headline
from pipeline.storage.folder import Folder
from tests.benchmarks import driver_memory


def test_the_made_up_run_says_what_its_tables_say(tmp_path: Path) -> None:
    config = driver_memory.make(tmp_path / "run", rows=2500, side=8)
    results = RunResults.read(Folder.open(config.run))
    assert list(results.manifests) == ["pack", "surrogate", "protect", "victim"]
    assert {values.size for values in results.samples.measures.values()} == {2500 - 3}  # one class of a thousand is unchanged
    assert results.measured_images == 2500 // driver_memory.TEST_SHARE
    assert headline(results).items() >= {"train_images": 2500, "protected_classes": 999, "protected_accuracy": 5.0}.items()
    assert "65.0 points less" in findings(results).sentences[0]
    of_images = {"samples", "extremes", "imperceptibility", "spectrum", "similarity"}
    assert of_images | {"accuracy", "classes", "surrogate"} == drawings(results).keys()
