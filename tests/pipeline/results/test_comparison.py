"""Runs side by side: figures are the runs' own, a warning names what does not compare, and unreadable runs stop nothing."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from pipeline import compare
from pipeline.config.schema import RunConfig
from pipeline.config.sweep_grid import grid, shared_stages
from pipeline.pages import comparison_figures
from pipeline.pages.comparison_page import VERSION
from pipeline.results.comparison import NONE, made, measured, rows
from pipeline.results.comparison import compare as side_by_side
from pipeline.results.run_results import RunResults
from pipeline.results.summary import headline
from pipeline.shards.tables import read_table
from pipeline.stages import sweep
from pipeline.storage.folder import Folder
from pipeline.storage.run import begin
from tests.fixtures import finished_run
from tests.fixtures.s3_servers import Server


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs by name: `eight` and `four` levels on the same data, `other` data, and one `without` victims."""
    place = tmp_path_factory.mktemp("runs")
    eight, _ = finished_run.write(place / "eight")
    shutil.copytree(place / "eight", place / "four", ignore=shutil.ignore_patterns("protect", "victim"))
    four = replace(eight, run=str(place / "four"), protect=replace(eight.protect, eps_levels=4, steps=2))
    finished_run.write(place / "four", ("protect", "victim"), four)
    other = finished_run.configuration(place / "other", seed=5)
    finished_run.write(place / "other", config=replace(other, victim=replace(other.victim, seeds=(0,), epochs=2)))
    shutil.copytree(place / "eight", place / "without", ignore=shutil.ignore_patterns("victim"))
    return {path.name: path for path in place.iterdir()}


def words(text: str) -> str:
    """Return the text with one space between words, whatever the widths of columns."""
    return re.sub(r"[ \t]+", " ", text)


def both(*folders: Path) -> list[RunResults]:
    return [RunResults.read(Folder.open(str(folder))) for folder in folders]


def test_prints_what_the_runs_measured(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "out"
    assert compare.main([str(runs["eight"]), str(runs["four"]), "--to", str(to)]) == 0
    out, err = capsys.readouterr()
    assert "warning" not in out + err
    for name, levels, steps in (("eight", 8, 4), ("four", 4, 2)):
        known = headline(results := RunResults.read(Folder.open(str(runs[name]))))
        (pair,) = results.pairs
        spreads = " ".join(str(spread) for spread in (pair.clean.last, pair.protected.last, pair.protected.peak, pair.protected.relabelled))
        assert f"resnet8 {name} 2 {spreads}" in words(out)
        gradients = 36 * steps * 2  # images, steps, checkpoints
        strongest = f"plain training: {pair.protected.last} %"
        made_with = f"{name} does not hold {strongest} generated sep-fa shift resnet8 {levels}/255 2 {steps} {gradients}"
        assert made_with in words(out)
        assert f"{known['psnr_db']:.1f} dB" in out
    assert str(to / "index.html") in out


def test_writes_the_same_as_tables_pictures_and_a_page(runs: dict[str, Path], tmp_path: Path) -> None:
    to = tmp_path / "out"
    assert compare.main([str(runs["eight"]), str(runs["four"]), str(runs["without"]), "--to", str(to)]) == 0
    rows = {row["run"]: row for row in read_table(Folder.open(str(to)), "comparison.parquet").to_pylist()}
    assert list(rows) == ["eight", "four", "without"]
    for name in ("eight", "four"):
        known = headline(RunResults.read(Folder.open(str(runs[name]))))
        for column in (
            "clean_accuracy",
            "clean_accuracy_std",
            "protected_accuracy",
            "protected_accuracy_std",
            "eps_levels",
            "method",
            "seeds",
        ):
            assert rows[name][column] == known[column]
        assert rows[name]["relabelled_accuracy"] == known["protected_relabelled_accuracy"]
    assert rows["eight"]["data_digest"] == rows["four"]["data_digest"]
    assert rows["without"]["method"] == "sep-fa"
    assert rows["without"]["protected_accuracy"] is None
    with (to / "comparison.csv").open() as stream:
        written = list(csv.DictReader(stream))
    assert [row["run"] for row in written] == list(rows)
    assert float(written[0]["protected_accuracy"]) == rows["eight"]["protected_accuracy"]
    html = (to / "index.html").read_text()
    inline = re.sub(r"base64,[A-Za-z0-9+/=]+", "", html)
    assert not re.findall(r"https?:|//[a-z]|@import|<link|<script src", inline)
    assert html.count("<picture>") == 2
    assert f'<td class="number">{rows["four"]["psnr_db"]:.1f} dB</td>' in html
    for name in ("accuracy", "cost"):
        assert (to / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert compare.main([str(runs["without"]), "--to", str(to)]) == 0  # over a comparison with pictures of other runs
    assert sorted(path.name for path in to.iterdir()) == ["comparison.csv", "comparison.parquet", "index.html"]


def test_says_why_figures_do_not_compare(runs: dict[str, Path]) -> None:
    said = "\n".join(side_by_side(both(runs["eight"], runs["other"], runs["four"], runs["without"])).warnings)
    assert "the data differ, so accuracies do not compare: eight, four, without: generated, 36 + 18 images of 3 classes; other:" in said
    assert "victim.epochs: 4 (eight, four); 2 (other)" in said
    assert "without: no victim has results yet" in said
    assert side_by_side(both(runs["eight"], runs["four"])).warnings == ()


def test_other_protected_classes_are_other_accuracies(runs: dict[str, Path], tmp_path: Path) -> None:
    some, _ = _redone(runs["eight"], tmp_path / "some", classes=("vertical", "diagonal"))
    (said,) = side_by_side(both(runs["eight"], Path(some.run))).warnings
    assert "eight: 3 of 3 classes; some: 2 of 3 classes" in said


def _redone(source: Path, target: Path, **changes: object) -> tuple[RunConfig, Folder]:
    """Write a run with the same pack and surrogate, protected differently, with victims."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("protect", "victim"))
    base = finished_run.configuration(target)
    config = replace(base, protect=replace(base.protect, **changes))  # type: ignore[arg-type]
    return finished_run.write(target, ("protect", "victim"), config)


def test_what_a_run_lacks_is_shown_as_missing(runs: dict[str, Path], tmp_path: Path) -> None:
    finished_run.write(tmp_path / "begun", ("pack",))
    compared = side_by_side(both(runs["eight"], runs["without"], tmp_path / "begun"))
    assert [line[0] for line in made(compared).lines] == ["eight", "without", "begun"]
    assert made(compared).lines[2] == ("begun", "not measured", NONE, "generated", *(NONE,) * 11)
    assert made(compared).lines[1][1:5] == ("not measured", NONE, "generated", "sep-fa")
    assert [line[1:] for line in measured(compared).lines if line[1] != "eight"] == [(name, *(NONE,) * 5) for name in ("without", "begun")]
    assert "begun: nothing is protected yet" in compared.warnings


@pytest.mark.parametrize(
    ("method", "used"),
    [
        ("sep-fa", {"targets": "shift", "eps_levels": 8, "steps": 4, "budget": "8/255"}),
        ("noise", {"targets": None, "eps_levels": 8, "steps": None, "budget": "8/255"}),
        ("error-min", {"targets": None, "eps_levels": 8, "steps": 4, "budget": "8/255"}),
        ("error-min-class", {"targets": None, "eps_levels": 8, "steps": None, "budget": "8/255"}),
        ("linear-separable", {"targets": None, "eps_levels": None, "steps": None, "budget": "L2 1.00"}),
        ("one-pixel", {"targets": None, "eps_levels": None, "steps": None, "budget": "1 pixel"}),
    ],
)
def test_what_a_method_does_not_use_is_not_listed(runs: dict[str, Path], method: str, used: dict[str, object]) -> None:
    own = {"linear-separable": {"norm": "l2", "limit": 255**2}, "one-pixel": {"norm": "pixels", "limit": 1}}
    run = _counted(runs["eight"], method=method, budget=own.get(method, {"norm": "linf", "limit": 8}))
    (row, *_) = rows(side_by_side([run]))
    assert {name: row[name] for name in used} == used
    (line,) = made(side_by_side([run])).lines
    assert [line[made(side_by_side([run])).head.index(name)] for name in ("targets", "budget", "steps")] == [
        NONE if used[name] is None else str(used[name]) for name in ("targets", "budget", "steps")
    ]


def _counted(path: Path, rate: float = 1.0, seconds: float = 0.0, **counts: object) -> RunResults:
    """Return the results of a run, with changed counts and times of its protection."""
    run = RunResults.read(Folder.open(str(path)))
    protect = run.manifests["protect"]
    timing = protect.timing | {"images_per_second": rate, "preparation_seconds": seconds}
    changed = replace(protect, counts=protect.counts | counts, timing=timing)
    return replace(run, manifests={**run.manifests, "protect": changed})


def test_a_start_that_crafted_nothing_says_nothing_of_the_cost(runs: dict[str, Path]) -> None:
    run = _counted(runs["eight"], rate=0.0)
    assert run.crafting_seconds is None
    (row, *_) = rows(side_by_side([run]))
    assert row["crafting_seconds"] is None
    table = made(side_by_side([run]))
    assert table.lines[0][table.head.index("crafting")] == NONE
    assert _counted(runs["eight"], rate=2.0).crafting_seconds == 18


def test_what_is_made_before_the_first_shard_is_part_of_the_cost(runs: dict[str, Path]) -> None:
    run = _counted(runs["eight"], rate=2.0, seconds=600.0)
    assert run.crafting_seconds == 618


@pytest.mark.parametrize(("values", "line"), [((5, 10), "-"), (("tap", "sep"), "None")])
def test_points_are_joined_along_numbers_and_not_along_names(runs: dict[str, Path], values: tuple[object, object], line: str) -> None:
    swept = {f"run {value}": replace(_counted(runs["eight"]), swept={"protect.it": value}) for value in values}
    (victim,) = {pair.name for pair in swept[f"run {values[0]}"].pairs[:1]}
    own = {name: next(pair for pair in run.pairs if pair.name == victim) for name, run in swept.items()}
    axis = Figure().subplots()
    comparison_figures._curve(axis, own, swept, "protect.it", "", "red")
    assert [drawn.get_linestyle() for drawn in axis.lines] == [line]


def test_a_sweep_is_compared_again_by_a_later_version(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        """A tracker that nobody reads."""

        def log_outcome(self, *_: object) -> None:
            """Log nothing."""

    path = tmp_path / "run"
    shutil.copytree(runs["four"], path, ignore=shutil.ignore_patterns("protect", "victim"))
    config, folder = replace(finished_run.configuration(path), sweep=("protect.steps=2",)), Folder.open(str(path))
    begin(folder, "steps-2", {"protect.steps": 2})
    finished_run.write(path / "sweep" / "steps-2", ("protect",), replace(config, sweep=(), protect=replace(config.protect, steps=2)))

    def written() -> int:
        sweep._conclude(config, grid(config), folder, Silent())  # type: ignore[arg-type]
        return (path / "comparison" / "index.html").stat().st_mtime_ns

    first = written()
    assert written() == first
    monkeypatch.setattr("pipeline.pages.comparison_page.VERSION", VERSION + 1)
    assert written() != first


def test_a_sweep_of_methods_without_surrogate_is_compared(runs: dict[str, Path], tmp_path: Path) -> None:
    class Kept:
        """A tracker that remembers its comparisons."""

        told = ""

        def log_outcome(self, _: Folder, text: str) -> None:
            self.told = text

    path, tracker = tmp_path / "run", Kept()
    shutil.copytree(runs["four"], path, ignore=shutil.ignore_patterns("protect", "victim"))
    config = replace(finished_run.configuration(path), sweep=("protect.method=linear-separable",))
    folder, own = Folder.open(str(path)), path / "sweep" / "method-linear-separable"
    begin(folder, own.name, {"protect.method": "linear-separable"})
    finished_run.write(own, ("protect",), replace(config, sweep=()))
    manifest = json.loads((own / "protect" / "manifest.json").read_text())
    del manifest["asked"]["inputs"]["surrogate"]
    manifest["counts"] |= {"method": "linear-separable", "networks": [], "epochs": [], "members": 0}
    (own / "protect" / "manifest.json").write_text(json.dumps(manifest))
    shutil.rmtree(path / "surrogate")
    assert "linear-separable" in sweep._conclude(config, grid(config), folder, tracker)  # type: ignore[arg-type]
    assert "linear-separable" in tracker.told
    assert shared_stages(config) == ("pack",)


def test_unreadable_runs_are_named_and_stop_nothing(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(runs["eight"], tmp_path / "damaged")
    (tmp_path / "damaged" / "protect" / "manifest.json").write_text("{")
    bad = [str(tmp_path / name) for name in ("damaged", "nowhere")]
    to = ["--to", str(tmp_path / "out")]
    assert compare.main([*bad, str(runs["eight"]), *to]) == 0
    out, err = capsys.readouterr()
    assert "resnet8 eight 2" in words(out)
    assert f"{bad[0]} is left out: " in err
    assert "protect/manifest.json is damaged" in err
    assert f"{bad[1]} is left out: " in err
    assert "Traceback" not in err
    assert compare.main([*bad, *to]) == 1
    assert "none of the runs can be read" in capsys.readouterr().err


def test_wrong_usage(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["--from", "there"]) == 2
    assert compare.main([]) == 2
    assert compare.main([str(runs["eight"]), "--to", str(runs["four"])]) == 1  # a run is never overwritten
    assert "holds something other" in capsys.readouterr().err


def test_names_are_as_long_as_they_have_to_be(runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(runs["eight"], tmp_path / "eight")
    compared = side_by_side(both(runs["eight"], tmp_path / "eight", runs["four"]))
    assert list(compared.runs) == [f"{runs['eight'].parent.name}/eight", f"{tmp_path.name}/eight", f"{runs['four'].parent.name}/four"]


def test_runs_on_an_object_store(
    runs: dict[str, Path], tmp_path: Path, s3_bucket: str, s3_server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    at = f"?endpoint_override={s3_server.url}"
    stored, to = f"s3://{s3_bucket}/runs/stored{at}", f"s3://{s3_bucket}/compared{at}"
    source, target = Folder.open(str(runs["four"])), Folder.open(stored)
    for name in source.names(recursive=True):
        target.write(name, source.read(name))
    assert compare.main([str(runs["eight"]), stored, "--to", to]) == 0
    out = capsys.readouterr().out
    assert "warning" not in out
    assert "resnet8 stored 2" in words(out)
    assert Folder.open(to).names() == ["accuracy.png", "comparison.csv", "comparison.parquet", "cost.png", "index.html"]


def test_a_point_of_a_sweep_is_a_run(runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(runs["four"], tmp_path / "run", ignore=shutil.ignore_patterns("protect", "victim"))
    begin(Folder.open(str(tmp_path / "run")), "steps-2", {"protect.steps": 2})
    config = finished_run.configuration(tmp_path / "run")
    point = tmp_path / "run" / "sweep" / "steps-2"
    finished_run.write(point, ("protect", "victim"), replace(config, protect=replace(config.protect, eps_levels=4, steps=2)))
    assert compare.main([str(runs["four"]), str(point), "--to", str(tmp_path / "out")]) == 0
    four, swept = read_table(Folder.open(str(tmp_path / "out")), "comparison.parquet").to_pylist()
    of_the_run = {"run", "uri", "crafting_seconds", "victim_seconds"}
    assert {name: value for name, value in four.items() if name not in of_the_run} == {
        name: value for name, value in swept.items() if name not in of_the_run
    }
