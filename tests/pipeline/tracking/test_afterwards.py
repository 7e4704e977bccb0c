"""What other commands log when a run is over: found by what the run folder remembers, and costing nothing if it is away."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import certify, compare, detect, verify
from pipeline.results.run_results import RunResults
from pipeline.stages import report
from pipeline.stages.audit import conclude
from pipeline.storage.driver_lock import driver_lock
from pipeline.storage.folder import Folder
from pipeline.storage.run import open_run
from pipeline.tracking import outbox
from pipeline.tracking.tracker import open_tracker
from tests.fixtures import finished_run
from tests.pipeline.tracking.test_faults import server

STAGES = ("pack", "surrogate", "protect")
ABROAD = "abroad.db"  # a database that several runs share, beside them


def client(database: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{database}")


def track(path: Path, *, uri: str | None = None) -> None:
    """Log a whole run, as it would be at its end."""
    config, folder = replace(finished_run.configuration(path), tracking_uri=uri), Folder.open(str(path))
    tracker = open_tracker(config, folder)
    tracker.begin()
    for stage in (*STAGES, "report"):
        tracker.log_stage(stage, RunResults.read(folder))
    tracker.close("FINISHED")


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that is logged in its own database, and two in one that they share."""
    place = tmp_path_factory.mktemp("runs")
    client(place / ABROAD).search_experiments()  # making a database takes seconds
    for name in ("own", "one", "two"):
        finished_run.write(place / name, STAGES)
    shutil.copy(place / ABROAD, place / "own" / "mlflow.db")
    track(place / "own")
    for name in ("one", "two"):
        track(place / name, uri=f"sqlite:///{place}/{ABROAD}")
    return place


@pytest.fixture
def own(templates: Path, tmp_path: Path) -> Path:
    """A copy of the run with its own database, at another place than it was logged at."""
    from mlflow.tracking._tracking_service import utils

    utils._artifact_repos_cache.clear()  # of this process; a command is another
    return Path(shutil.copytree(templates / "own", tmp_path / "own"))


def run_of(path: Path) -> Any:
    return client(path / "mlflow.db").get_run(json.loads((path / "tracking.json").read_text())["parent"])


def artifact(path: Path, run: Any, name: str) -> str:
    return Path(path, "mlflow", run.info.run_id, "artifacts", name).read_text()


def test_the_outcome_is_in_the_run_that_was_verified(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.execute(finished_run.configuration(own), Folder.open(str(own)))
    assert verify.main(["--run", str(own)]) == 0
    said = capsys.readouterr()
    run = run_of(own)
    assert said.err == ""
    assert (run.data.tags["verified"], run.info.status) == ("no fault", "FINISHED")
    assert json.loads(artifact(own, run, "verified.json"))["said"] == said.out.strip()
    assert said.out.strip() in artifact(own, run, "report/index.html")


def test_how_well_it_is_told_from_clean_images_is_in_the_run(own: Path) -> None:
    assert detect.main(["--run", str(own), "--detectors", "spectrum"]) == 0
    run = run_of(own)
    assert run.data.tags["detection"].endswith(" by spectrum")
    assert json.loads(artifact(own, run, "detection.json")) == json.loads((own / "detection.json").read_text())


def test_a_certificate_is_in_the_run(own: Path) -> None:
    assert certify.main(["--run", str(own), "--eta", "0", "--draws", "44"]) == 0
    run, record = run_of(own), json.loads((own / "certificate.json").read_text())
    assert run.data.metrics["certified_accuracy"] == record["protected"]["bound"]
    assert run.data.tags["certificate"] == f"at most {record['protected']['bound']:.1f} %, resnet8"
    assert json.loads(artifact(own, run, "certificate.json")) == record


def test_faults_are_named_even_where_the_report_cannot_be_drawn(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(own / "pack", own / "report")  # one that was drawn
    (own / "protect" / "train-000001.tar").write_bytes(b"")
    assert verify.main(["--run", str(own)]) == 1
    assert "not on the page of the run" in capsys.readouterr().err
    run = run_of(own)
    assert run.data.tags["verified"].endswith(" faults")
    assert any("train-000001.tar" in fault for fault in json.loads(artifact(own, run, "verified.json"))["first"])


def test_the_next_start_logs_what_verify_could_not(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as away:
        away.setattr("pipeline.tracking.afterwards.log_outcome", lambda folder, command: None)
        assert verify.main(["--run", str(own)]) == 0
    assert "verified" not in run_of(own).data.tags
    track(own)
    assert run_of(own).data.tags["verified"] == "no fault"


def test_the_verdict_of_an_audit_is_in_the_run_that_was_audited(own: Path) -> None:
    finished_run.write(own, ("victim",), replace(finished_run.configuration(own), overwrite=True))
    config = replace(finished_run.configuration(own), victim=replace(finished_run.configuration(own).victim, countermeasures=("none",)))
    said = conclude(config, open_run(str(own)), {}, "audit.py again")
    run, card = run_of(own), json.loads((own / "audit" / "card.json").read_text())
    assert run.data.tags["audit"] == card["verdict"]
    assert run.data.metrics["strongest_adversary_accuracy"] == card["decided_accuracy"]
    assert json.loads(artifact(own, run, "audit/card.json")) == card
    assert artifact(own, run, "audit/index.html") == (own / "audit" / "index.html").read_text()
    assert card["line"] in said
    before = (own / "tracking.json").read_bytes()
    conclude(replace(config, tracking_uri="none"), open_run(str(own)), {}, "audit.py again")
    assert (own / "tracking.json").read_bytes() == before


def test_a_driver_at_work_costs_an_audit_no_verdict(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished_run.write(own, ("victim",), replace(finished_run.configuration(own), overwrite=True))
    run = Folder.open(str(own))
    with driver_lock(run):
        said = conclude(finished_run.configuration(own), run, {}, "audit.py again")
    assert json.loads((own / "audit" / "card.json").read_text())["line"] in said
    assert "the outcome is recorded, but not shown" in capsys.readouterr().err
    assert "audit" not in run_of(own).data.tags


def test_a_run_that_logs_nothing_stays_so(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("mlflow.db", "tracking.json"):
        (own / name).unlink()
    assert verify.main(["--run", str(own)]) == 0
    assert compare.main([str(own), "--to", str(own / "compared")]) == 0
    assert "MLflow" not in capsys.readouterr().out
    assert not {"mlflow.db", "tracking.json"} & {path.name for path in own.rglob("*")}


def test_another_release_than_the_logged_one_is_no_business_of_its_run(own: Path) -> None:
    config = finished_run.configuration(own)
    finished_run.write(own, ("protect",), replace(config, protect=replace(config.protect, steps=2), overwrite=True))
    assert verify.main(["--run", str(own)]) == 0
    assert "verified" not in run_of(own).data.tags


@pytest.fixture
def shared(templates: Path, tmp_path: Path) -> Path:
    """Copies of the two runs, and of the database that they share where it always was; whatever is logged there is undone."""
    for name in ("one", "two"):
        shutil.copytree(templates / name, tmp_path / name)
    return tmp_path


def test_a_database_that_went_away_is_one_line_and_no_empty_one(shared: Path, templates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = templates / ABROAD
    database.rename(templates / "hidden.db")
    try:
        assert verify.main(["--run", str(shared / "one")]) == 0
        assert not database.exists()
    finally:
        (templates / "hidden.db").rename(database)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tracking: what verify found was not logged")
    assert f"{database} is not there any more" in line


def test_a_comparison_is_a_run_beside_those_that_it_compares(shared: Path, templates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compared = [str(shared / "one"), str(shared / "two"), "--to", str(shared / "side by side")]
    for _ in range(2):
        assert compare.main(compared) == 0
    assert "sqlite:///" in capsys.readouterr().out.rsplit("MLflow", 1)[1]
    (run,) = client(templates / ABROAD).search_runs(["1"], "tags.stage = 'comparison'")
    assert (run.info.run_name, run.info.status) == ("side by side", "FINISHED")
    logged = {entry.path for entry in client(templates / ABROAD).list_artifacts(run.info.run_id, "comparison")}
    assert logged == {"comparison/index.html", "comparison/comparison.csv"}  # no victims, and so no pictures
    for name in ("one", "two"):
        found = json.loads((shared / name / "tracking.json").read_text())
        assert f"[{name}](#/experiments/1/runs/{found['parent']}?workflowType=machine_learning)" in run.data.tags["mlflow.note.content"]


def test_runs_that_share_no_tracker_are_told_how(own: Path, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compared = [str(own), str(shared / "one"), "--to", str(shared / "compared")]
    assert compare.main(compared) == 0
    assert "the runs have 2 trackers, and --tracking-uri names one" in capsys.readouterr().out
    assert compare.main([*compared, "--tracking-uri", "localhost:5000"]) == 1
    assert "did you mean http://localhost:5000?" in capsys.readouterr().err


def test_a_silent_tracker_is_left_alone(shared: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "SILENT_SECONDS", 0.3)
    with server(None) as uri:
        assert compare.main([str(shared / "one"), "--to", str(shared / "compared"), "--tracking-uri", uri]) == 0
    said = capsys.readouterr()
    assert said.err.count("was waited for") == 1
    assert "MLflow    " not in said.out
