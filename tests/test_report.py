"""The report: figures from the files alone, one page without any request, honest words, whatever stages there are."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipeline import report, results
from pipeline.config import RunConfig, from_tree, parse, to_tree
from pipeline.results import Pair, pairs
from pipeline.shards import read_table
from pipeline.stage import Manifest
from pipeline.storage import Folder
from tests import finished_run


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Folder]:
    """All stages, reported."""
    config, folder = finished_run.write(tmp_path_factory.mktemp("runs") / "whole")
    report.run(config, folder)
    return config, folder


@pytest.fixture
def copied_run(whole_run: tuple[RunConfig, Folder], tmp_path: Path) -> tuple[RunConfig, Folder]:
    """A copy of the same to change."""
    config, folder = whole_run
    shutil.copytree(folder.path, tmp_path / "copy")
    return replace(config, run=str(tmp_path / "copy")), Folder.open(str(tmp_path / "copy"))


def page(folder: Folder) -> str:
    return folder.read("report/index.html").decode()


def words(folder: Folder) -> str:
    """The page's text without pictures and tags."""
    return re.sub(r"\s+", " ", re.sub(r"<style.*?</style>|<script.*?</script>|<[^>]*>", " ", page(folder), flags=re.DOTALL))


def pair(clean: float, protected: float, relabelled: float, countermeasure: str = "none") -> Pair:
    rows = [
        {"network": "resnet8", "countermeasure": countermeasure, "data": data, "seed": 0, "accuracy_per_epoch": [last]}
        | {"last_accuracy": last, "peak_accuracy": last, "relabelled_accuracy": again}
        for data, last, again in (("clean", clean, clean), ("protected", protected, relabelled))
    ]
    return pairs(rows)[0]


def found_of(classes: int, tests: int) -> dict[str, Manifest]:
    counts = {"classes": [str(i) for i in range(classes)], "test": tests}
    return {"pack": Manifest(stage="pack", asked={"inputs": {}}, hash="", counts=counts)}


def test_headline_and_page_say_what_the_tables_say(whole_run: tuple[RunConfig, Folder]) -> None:
    _, folder = whole_run
    rows = read_table(folder, "victim/results.parquet").to_pylist()
    protected = read_table(folder, "protect/samples.parquet").to_pydict()
    accuracy = {data: [row["last_accuracy"] for row in rows if row["data"] == data] for data in ("clean", "protected")}
    relabelled = [row["relabelled_accuracy"] for row in rows if row["data"] == "protected"]
    assert all(len(values) == 2 for values in accuracy.values())
    known = results.headline(folder)
    assert known["clean_accuracy"] == pytest.approx(sum(accuracy["clean"]) / 2)
    assert known["protected_accuracy"] == pytest.approx(sum(accuracy["protected"]) / 2)
    assert known["protected_accuracy_std"] == pytest.approx(statistics.stdev(accuracy["protected"]))
    assert known["protected_relabelled_accuracy"] == pytest.approx(sum(relabelled) / 2)
    assert known["linf_levels"] == max(protected["linf_levels"])
    assert 0 < known["linf_levels"] <= 8  # type: ignore[operator]
    assert known["psnr_db"] == pytest.approx(statistics.fmean(protected["psnr_db"]))

    text = words(folder)
    shown = (f"{known['clean_accuracy']:.1f} %", f"{known['protected_accuracy']:.1f} %", f"{known['psnr_db']:.1f} dB")
    for figure in (*shown, f"PSNR {shown[2]}", "chance is 33.3 %", "2 inputs were refused", *finished_run.CLASSES):
        assert figure in text
    for row in rows:
        assert f"{row['data']} {row['seed']} {row['last_accuracy']:.2f} {row['peak_accuracy']:.2f}" in text
    assert "train/vertical/&lt;broken&gt; &amp; half.jpg" in page(folder)  # names from outside cannot become markup


def test_page_makes_no_request_and_holds_its_pictures(whole_run: tuple[RunConfig, Folder]) -> None:
    _, folder = whole_run
    html = page(folder)
    assert not re.findall(r"https?:|//[a-z]|@import|<link|<iframe|<base", re.sub(r"base64,[A-Za-z0-9+/=]+", "", html))
    sources = re.findall(r"(?:src|srcset|href|url)\s*[=(]\s*[\"']?([^\"' >]*)", html)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "default-src 'none'" in html
    for name in ("samples", "accuracy", "surrogate", "psnr"):
        assert folder.read(f"report/{name}.png").startswith(b"\x89PNG")
    assert html.count("<picture>") == 4


def test_command_and_settings_on_the_page_give_the_configuration_back(whole_run: tuple[RunConfig, Folder], tmp_path: Path) -> None:
    config, folder = whole_run
    found = results.finished(folder)
    tree = results.configuration(config, found)
    again = parse(report.command(tree).split()[2:])
    assert to_tree(again) == to_tree(config)
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(tree))
    assert from_tree(yaml.safe_load((tmp_path / "settings.yaml").read_text())) == config


def test_settings_shown_are_those_a_stage_was_made_with(whole_run: tuple[RunConfig, Folder]) -> None:
    config, folder = whole_run
    other = replace(config, protect=replace(config.protect, steps=29), tracking_uri="http://user:secret@host")
    tree = results.configuration(other, results.finished(folder))
    assert tree["protect"]["steps"] == config.protect.steps
    assert "secret" not in str(tree)


@pytest.mark.parametrize("stages", [("pack",), ("pack", "surrogate"), ("pack", "surrogate", "protect")])
def test_any_beginning_of_a_run_can_be_reported(stages: tuple[str, ...], tmp_path: Path) -> None:
    config, folder = finished_run.write(tmp_path / "part", stages)
    manifest = report.run(config, folder)
    drawn = {"pack": set(), "surrogate": {"surrogate"}, "protect": {"surrogate", "samples", "psnr"}}[stages[-1]]
    assert set(manifest.counts["pictures"]) == drawn
    assert "No victim has been trained yet" in words(folder)
    assert "clean victim" not in report.summary(config, folder)
    assert ("PSNR" in report.summary(config, folder)) == ("protect" in stages)


def test_report_is_made_again_only_when_there_is_something_new(tmp_path: Path) -> None:
    config, folder = finished_run.write(tmp_path / "run", ("pack",))
    first = report.run(config, folder)
    written = os.stat(folder.file("report/index.html")).st_mtime_ns
    assert report.run(config, folder) == first
    assert os.stat(folder.file("report/index.html")).st_mtime_ns == written
    finished_run.write(tmp_path / "run", ("surrogate",))
    assert report.run(config, folder).counts["pictures"] == ["surrogate"]


def test_results_of_an_earlier_protection_are_left_out(copied_run: tuple[RunConfig, Folder]) -> None:
    config, folder = copied_run
    redone = replace(config, protect=replace(config.protect, steps=2), overwrite=True)
    finished_run.write(Path(folder.path), ("protect",), redone)
    assert list(results.finished(folder)) == ["pack", "surrogate", "protect"]
    assert "protected_accuracy" not in results.headline(folder)
    report.run(redone, folder)
    assert "No victim has been trained yet" in words(folder)


def test_nothing_to_report_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run at least the pack stage"):
        report.run(finished_run.configuration(tmp_path), Folder.open(str(tmp_path)))


@pytest.mark.parametrize(
    ("figures", "says", "not_says"),
    [
        ((67.4, 11.2, 14.0), ["56.2 points less", "1.2 points above chance", "next to nothing"], "undo"),
        ((67.4, 10.4, 13.0), ["cannot be told from chance"], "undo"),
        ((99.0, 1.0, 95.0), ["below chance", "can undo it, and regains 96 % of what was lost"], "above chance (10"),
        ((67.4, 14.9, 37.8), ["4.9 points above chance", "can undo it, and regains 44 % of what was lost"], "cannot be told"),
        ((67.4, 64.0, 64.5), ["no protection to speak of"], "relabelling"),
        ((10.5, 10.0, 12.0), ["comparison says nothing"], "chance (10 %)"),
    ],
)
def test_findings_are_honest(figures: tuple[float, float, float], says: list[str], not_says: str) -> None:
    text = " ".join(report.findings(found_of(classes=10, tests=10_000), [pair(*figures)]))
    for part in says:
        assert part in text
    assert not_says not in text


def test_findings_name_the_countermeasure_that_undoes_the_protection() -> None:
    measured = [pair(67.0, 11.0, 12.0), pair(60.0, 55.0, 55.0, "jpeg-10"), pair(64.0, 13.0, 14.0, "grayscale")]
    assert "weakest against resnet8, jpeg-10: 55.0 %" in " ".join(report.findings(found_of(10, 10_000), measured))
    assert "countermeasures (none, jpeg-10, grayscale)" in report.scope(measured)
    assert "A single seed says nothing about spread." in report.scope(measured)


def test_summary_is_complete_and_does_not_load_what_draws(whole_run: tuple[RunConfig, Folder]) -> None:
    config, folder = whole_run
    text = report.summary(config, folder)
    known = results.headline(folder)
    for part in (
        f"{known['clean_accuracy']:.1f} %",
        f"{known['protected_relabelled_accuracy']:.1f} %",
        f"{known['psnr_db']:.1f} dB",
        f"{folder.path}/report/index.html",
        f"make ui RUN={folder.path}",
        f"python pipeline/verify.py --run {folder.path}",
    ):
        assert part in text
    program = "import sys; from pipeline import report; assert not {'matplotlib', 'mlflow'} & set(sys.modules), 'slow'"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(report.__file__).parents[1])


def test_settings_of_a_finished_run_win_over_those_of_a_later_start(whole_run: tuple[RunConfig, Folder]) -> None:
    config, folder = whole_run
    later = replace(config, data="/elsewhere", seed=config.seed + 1)
    assert results.configuration(later, results.finished(folder)) == results.configuration(config, results.finished(folder))
