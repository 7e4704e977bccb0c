"""A certificate of a tiny run: two networks are trained once, and a record stays with the run."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cluster.resources import Resources
from pipeline import certify
from pipeline.stages import report
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Manifest
from tests.fixtures import finished_run

TERMS = ("--eta", "0", "--draws", "44", "--sigma")  # the fewest draws for q = 0.9 and a confidence of 99 %


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    monkeypatch.setattr(Resources, "cpus_for", lambda *_: 1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(tmp_path: Path) -> Folder:
    """A run with a release and no victims."""
    return finished_run.write(tmp_path / "run", ("pack", "surrogate", "protect"))[1]


@pytest.mark.usefixtures("one_thread")
def test_a_certificate_stays_with_the_run_and_the_next_one_trains_nothing(run: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    report.execute(finished_run.configuration(Path(run.path)), run)
    assert certify.main(["--run", run.uri, *TERMS, "0.01"]) == 0
    said, first = capsys.readouterr().out, json.loads(run.read("certificate.json"))
    weights = {name: run.child("certificate").read(name) for name in run.child("certificate").names()}
    assert weights.keys() == {f"resnet8-{data}-none-seed0.pt" for data in ("clean", "protected")}
    assert said.splitlines() == [first["line"], *first["sentences"]]
    assert first["release_sha256"] == Manifest.load(run, "protect").digest
    for data in ("clean", "protected"):
        assert first[data]["bound"] == max(first[data]["accuracies"])
        assert len(first[data]["accuracies"]) == first["terms"]["rank"] == 44
    assert first["distance"] > 0
    page = run.read("report/index.html").decode()
    assert all(html.escape(sentence, quote=False) in page for sentence in (first["line"], *first["sentences"]))
    assert certify.main(["--run", run.uri, *TERMS, "1e-9"]) == 0
    second = json.loads(run.read("certificate.json"))
    assert {name: run.child("certificate").read(name) for name in weights} == weights
    for data in ("clean", "protected"):  # noise that is next to nothing changes no answer
        assert set(second[data]["accuracies"]) == {first[data]["accuracy"]}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--draws", "43", "--eta", "0"), "43 draws are too few"),
        (("--network", "resnet9"), "resnet9"),
        (("--sigma", "0"), "sigma must be above 0"),
    ],
)
def test_what_cannot_be_certified_is_said_in_one_line(
    run: Folder, flags: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert certify.main(["--run", run.uri, *flags]) > 0
    said = capsys.readouterr().err
    assert says in said
    assert len(said.splitlines()) == 1
    assert not run.exists("certificate.json")


def test_a_run_without_a_release_has_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished_run.write(tmp_path / "run", ("pack",))[1]
    assert certify.main(["--run", run.uri]) == 1
    assert "protect" in capsys.readouterr().err
