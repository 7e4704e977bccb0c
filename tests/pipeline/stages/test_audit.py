"""An audit of a tiny run: stopped and gone on with, it trains only what is missing, and page and card say what the records say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from cluster.deadline import Deadline
from cluster.resources import Resources
from pipeline import audit
from pipeline.shards.tables import read_table
from pipeline.storage.folder import Folder
from tests.fixtures import finished_run
from tests.fixtures.trial_outcomes import outcome

ADVERSARIES = ("jpeg-10", "early-stop")


class Start(NamedTuple):
    """What one start of the command left: exit code, output, card and page, and the records of the trials by name."""

    code: int
    out: str
    card: dict[str, Any]
    page: str
    records: dict[str, bytes]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A run with a release and no victims."""
    path = tmp_path_factory.mktemp("audited") / "run"
    config = finished_run.configuration(path)
    victim = replace(config.victim, seeds=(0,), epochs=2)
    return finished_run.write(
        path, ("pack", "surrogate", "protect"), replace(config, victim=victim, executor="local", tracking_uri="none")
    )[1]


@pytest.fixture(scope="module")
def starts(run: Folder) -> Iterator[tuple[Start, Start]]:
    """An audit whose time is up in the middle of the cheapest adversary, and the same command again."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Resources, "cpus_for", lambda *_: 1)
        with patch.context() as late:
            late.setattr(Deadline, "passed", lambda _: run.exists("victim/resnet8-protected-early-stop-seed0.json"))
            first = start(run, "--minutes", "9")
        yield first, start(run, "--minutes", "9")
    torch.set_num_threads(threads)


def start(run: Folder, *flags: str) -> Start:
    with redirect_stdout(StringIO()) as printed:
        code = audit.main(["--run", run.uri, "--adversaries", *ADVERSARIES, *flags])
    page = run.read("audit/index.html").decode()
    names = [name for name in run.child("victim").names() if name.startswith("resnet8") and name.endswith(".json")]
    card: dict[str, Any] = json.loads(run.read("audit/card.json"))
    return Start(code, printed.getvalue(), card, page, {name: run.child("victim").read(name) for name in names})


def test_an_audit_whose_time_is_up_keeps_what_it_has_and_says_what_it_has_not_tried(starts: tuple[Start, Start]) -> None:
    first, _ = starts
    assert first.code == 3
    assert first.card["adversaries"].keys() == {"none"}  # cheapest first, each with its clean ceiling before the next
    assert first.card["not_tried"] == {name: "0 of 1 trainings done" for name in ("early-stop", "jpeg-10")}
    said = "Not tried, or not to the end: early-stop, jpeg-10."
    assert said in first.out
    assert said in first.page
    assert "python pipeline/audit.py --run" in first.page
    assert first.records.keys() == {f"resnet8-{trial}-seed0.json" for trial in ("clean-none", "protected-none", "protected-early-stop")}


def test_the_same_command_trains_only_what_is_missing(starts: tuple[Start, Start], run: Folder) -> None:
    first, second = starts
    assert second.code == 0
    assert first.records.items() < second.records.items()  # with their times: nothing is trained twice
    assert second.card["not_tried"] == {}
    rows = read_table(run, "victim/results.parquet").to_pylist()
    assert [(row["countermeasure"], row["data"]) for row in rows] == [
        (name, data) for name in ("none", "early-stop", "jpeg-10") for data in ("clean", "protected")
    ]


def test_card_and_page_say_what_the_records_say(starts: tuple[Start, Start], run: Folder) -> None:
    _, second = starts
    plain = outcome(run, "resnet8-protected-none-seed0")
    for name, entry in second.card["adversaries"].items():
        clean, protected = (outcome(run, f"resnet8-{data}-{name}-seed0") for data in ("clean", "protected"))
        assert entry["originals_accuracy"] == {"mean": round(clean["last_accuracy"], 2), "std": None}
        assert entry["last_accuracy"]["mean"] == round(protected["last_accuracy"], 2)
        assert entry["relabelled_accuracy"]["mean"] == round(protected["relabelled_accuracy"], 2)
        assert entry["cost"]["times"] == pytest.approx(protected["seconds"] / plain["seconds"])
        assert (entry["cost"]["unit"], entry["seeds"], entry["network"]) == ("CPU-hours", [0], "resnet8")
        assert f'data-value="{protected["last_accuracy"]}"' in second.page
    assert second.card["line"] in second.out.splitlines()
    assert second.card["line"].split(": ")[0] in second.page
    assert second.card["release_sha256"][:12] in second.page


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (["--run", "{unprotected}"], 1, "stage 'protect' has not finished in .*: run it first"),
        (["--run", "/no/such/run"], 1, "/no/such/run: expected a run, as given to run.py by --run"),
        (["--run", "{run}", "--adversaries", "prayer"], 1, "unknown countermeasure 'prayer'; known are "),
        (["--run", "{run}", "--minutes", "0"], 1, "minutes must be above 0, got 0"),
        (["--run", "{run}", "--executor", "slurm"], 2, "slurm"),
        (["--run", "{bare}"], 1, "config.json is missing: the next start of the run writes it again"),
    ],
)
def test_what_cannot_be_audited_is_one_line(
    run: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], code: int, says: str
) -> None:
    places = {"run": run.uri, "unprotected": str(tmp_path / "unprotected"), "bare": str(tmp_path / "bare")}
    finished_run.write(tmp_path / "unprotected", ("pack",))
    finished_run.write(tmp_path / "bare", ("pack", "surrogate", "protect"))[1].remove("config.json")
    assert audit.main([word.format(**places) for word in flags]) == code
    error = capsys.readouterr().err
    assert error.startswith("audit.py: ")
    assert error.count("\n") == 1
    assert re.search(says, error)


def test_what_this_machine_cannot_try_is_left_out_with_the_reason(run: Folder) -> None:
    from pipeline.stages.audit import _unsuited

    config = finished_run.configuration(Path(run.path))
    tiny = replace(config, victim=replace(config.victim, initial_size=8))
    unsuited = _unsuited(tiny, run, ("none", "jpeg-10", "pretrained"))
    assert unsuited == {"pretrained": "victim.initial-size must be at least 32 pixels, got 8"}
