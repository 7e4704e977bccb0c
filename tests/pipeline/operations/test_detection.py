from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config.presets import preset
from pipeline.config.schema import ProtectConfig
from pipeline.detect import main
from pipeline.operations.detection import Asked, chosen, detect, usual_images
from pipeline.results.detection import Detection
from pipeline.results.run_results import RunResults
from pipeline.stages import pack, protect, report
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Manifest
from tests.fixtures import finished_run
from tests.fixtures.executors import LOCAL
from tests.fixtures.pictures import class_folders

CHEAP = ["--detectors", "spectrum", "residual"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with protected images."""
    path = tmp_path_factory.mktemp("finished") / "run"
    finished_run.write(path, stages=("pack", "surrogate", "protect"))
    return path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_the_outcome_is_a_table_a_line_a_record_and_a_part_of_the_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Folder.open(str(run))
    report.execute(finished_run.configuration(run), folder)
    assert main(["--run", str(run), *CHEAP]) == 0
    said = capsys.readouterr()
    record = json.loads((run / "detection.json").read_text())
    assert record["release_sha256"] == Manifest.load(folder, "protect").digest
    assert [row["name"] for row in record["detectors"]] == ["spectrum", "residual"]
    assert said.out == f"{Detection.of(record)}\n"
    page = (run / "report" / "index.html").read_text()
    assert Detection.of(record).line in page
    assert 'id="detection"' in page


def test_another_start_measures_only_what_is_missing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for asked, measured in ((["--detectors", "spectrum"], ["spectrum"]), (CHEAP, ["residual"]), (CHEAP, [])):
        assert main(["--run", str(run), *asked]) == 0
        assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == measured
    first = (run / "detection.json").read_bytes()
    assert main(["--run", str(run), *CHEAP, "--seed", "1"]) == 0
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert (run / "detection.json").read_bytes() != first


def test_a_record_of_an_earlier_release_is_not_of_this_one(run: Path) -> None:
    assert main(["--run", str(run), "--detectors", "spectrum"]) == 0
    record = json.loads((run / "detection.json").read_text())
    (run / "detection.json").write_text(json.dumps({**record, "release_sha256": "another"}))
    assert "detect" not in RunResults.read(Folder.open(str(run))).found
    assert detect(Folder.open(str(run)), ["spectrum"])["release_sha256"] == record.pop("release_sha256")
    (run / "detection.json").write_text(json.dumps({**record, "release": Manifest.load(Folder.open(str(run)), "protect").digest}))
    assert "detect" in RunResults.read(Folder.open(str(run))).found  # by the name that earlier versions gave it


def test_pictures_beyond_a_share_are_not_looked_at(tmp_path: Path) -> None:
    class_folders(tmp_path / "data", {"ant": 20, "bee": 22})
    base = preset("smoke")
    config = replace(base, data=str(tmp_path / "data"), run=str(tmp_path / "run"), stages=("pack", "protect"))
    config = replace(config, protect=ProtectConfig(method="noise", share=0.5))
    folder = Folder.open(config.run)
    for stage in (pack, protect):
        stage.execute(config, folder, LOCAL)
    parts = chosen(folder, Manifest.load(folder, "pack"), Manifest.load(folder, "protect"), Asked(42, 0, "train"), None)
    assert [len(part) for part in parts] == [10, 10]
    assert all((part.protected != part.clean).flatten(1).any(1).all() for part in parts)


def test_no_picture_is_on_both_sides(run: Path) -> None:
    folder = Folder.open(str(run))
    clean, release = Manifest.load(folder, "pack"), Manifest.load(folder, "protect")
    learn, judge = chosen(folder, clean, release, Asked(36, 0, "train"), None)
    assert len(learn) == len(judge) == 18
    learned, judged = ({image.numpy().tobytes() for image in part.clean} for part in (learn, judge))
    assert len(learned | judged) == 36
    assert all(0 < int((part.protected.int() - part.clean.int()).abs().max()) <= 8 for part in (learn, judge))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--images", "19"], "--images: expected at least 20"),
        (["--detectors", "eye"], "--detectors: expected some of spectrum, residual, convolutional, iterative-filtering; got eye"),
        (["--split", "test"], "--split: expected one of the release (train), got test"),
    ],
)
def test_what_cannot_be_measured_is_one_line(run: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run", str(run), *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_run_without_a_release_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished_run.write(tmp_path / "run", stages=("pack",))
    assert main(["--run", str(tmp_path / "run")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "stage 'protect' has not finished" in line


def test_a_release_of_too_few_pictures_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "protect" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["counts"]["classes"] = []
    path.write_text(json.dumps(manifest))
    assert main(["--run", str(run)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected at least 20 protected images in split train, found 0" in line


def test_pictures_are_judged_at_the_size_that_victims_see(run: Path) -> None:
    folder = Folder.open(str(run))
    clean, release = Manifest.load(folder, "pack"), Manifest.load(folder, "protect")
    learn, judge = chosen(folder, clean, release, Asked(36, 0, "train"), 12)
    assert {tuple(images.shape) for part in (learn, judge) for images in (part.clean, part.protected)} == {(18, 3, 12, 12)}


def test_larger_pictures_are_fewer(run: Path) -> None:
    pack = Manifest.load(Folder.open(str(run)), "pack")
    assert [usual_images(pack, side) for side in (None, 64, 128, 224, 448)] == [2000, 2000, 500, 200, 200]
