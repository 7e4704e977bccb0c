"""The report: figures from the files alone, a page without requests, and honest words, whatever stages have finished."""

from __future__ import annotations

import json
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

from pipeline import verify as verify_command
from pipeline.config.command_line import parse
from pipeline.config.presets import from_tree
from pipeline.config.schema import RunConfig, to_tree
from pipeline.operations.verification import verify
from pipeline.results import summary
from pipeline.results.commands import command
from pipeline.results.findings import findings
from pipeline.results.run_results import RunResults
from pipeline.results.samples import image_pairs
from pipeline.results.summary import headline
from pipeline.shards.tables import read_table, rows_to_table, write_table
from pipeline.stages import report
from pipeline.storage.folder import Folder
from pipeline.storage.stage import Manifest
from tests import ROOT
from tests.fixtures import finished_run


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Folder]:
    """A run with all stages and its report."""
    config, folder = finished_run.write(tmp_path_factory.mktemp("runs") / "whole")
    report.execute(config, folder)
    return config, folder


@pytest.fixture(scope="module")
def mixed_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Folder]:
    """A run with two surrogates, two victims and two of three classes protected, and its report."""
    path = tmp_path_factory.mktemp("runs") / "mixed"
    config, folder = finished_run.write(path, config=finished_run.mixed_configuration(path))
    report.execute(config, folder)
    return config, folder


@pytest.fixture
def copied_run(whole_run: tuple[RunConfig, Folder], tmp_path: Path) -> tuple[RunConfig, Folder]:
    """A copy of the whole run, to change."""
    config, folder = whole_run
    shutil.copytree(folder.path, tmp_path / "copy")
    return replace(config, run=str(tmp_path / "copy")), Folder.open(str(tmp_path / "copy"))


OF_IMAGES = {"samples", "extremes", "imperceptibility", "spectrum", "similarity"}
FIGURES = ("last", "peak", "relabelled")


def page(folder: Folder) -> str:
    return folder.read("report/index.html").decode()


def words(folder: Folder) -> str:
    """Return the page's text without pictures and tags."""
    return re.sub(r"\s+", " ", re.sub(r"<style.*?</style>|<script.*?</script>|<[^>]*>", " ", page(folder), flags=re.DOTALL))


def test_headline_and_page_say_what_the_tables_say(whole_run: tuple[RunConfig, Folder]) -> None:
    _, folder = whole_run
    rows = read_table(folder, "victim/results.parquet").to_pylist()
    protected = read_table(folder, "protect/samples.parquet").to_pydict()
    accuracy = {data: [row["last_accuracy"] for row in rows if row["data"] == data] for data in ("clean", "protected")}
    relabelled = [row["relabelled_accuracy"] for row in rows if row["data"] == "protected"]
    assert all(len(values) == 2 for values in accuracy.values())
    known = headline(RunResults.read(folder))
    assert known["clean_accuracy"] == pytest.approx(sum(accuracy["clean"]) / 2)
    assert known["protected_accuracy"] == pytest.approx(sum(accuracy["protected"]) / 2)
    assert known["protected_accuracy_std"] == pytest.approx(statistics.stdev(accuracy["protected"]))
    assert known["protected_relabelled_accuracy"] == pytest.approx(sum(relabelled) / 2)
    assert known["linf_levels"] == max(protected["linf_levels"])
    assert 0 < known["linf_levels"] <= 8  # type: ignore[operator]
    for name in ("psnr_db", "ssim", "changed_percent"):
        assert known[name] == pytest.approx(statistics.fmean(protected[name]))
    config = whole_run[0].protect
    assert known["gradients_per_image"] == config.gradients_per_image(config.members(1))
    assert known["gradients"] == config.gradients_per_image(config.members(1)) * len(protected["key"])

    text = words(folder)
    assert f"Gradients an image {known['gradients_per_image']:.0f} the cost of the protection; crafting took" in text
    shown = (f"{known['clean_accuracy']:.1f} %", f"{known['protected_accuracy']:.1f} %", f"{known['psnr_db']:.1f} dB")
    for figure in (*shown, f"PSNR {shown[2]}", "guessing gives 33.3 %", "2 inputs were refused", *finished_run.CLASSES):
        assert figure in text
    for row in rows:
        assert f"{row['data']} {row['seed']} {row['last_accuracy']:.2f} {row['peak_accuracy']:.2f}" in text
    for word in ("Other classes", "others, clean", "not protected"):  # every class is protected
        assert word not in text
    assert "The images were protected with checkpoints of resnet8." in text
    assert "train/vertical/&lt;broken&gt; &amp; half.jpg" in page(folder)  # names from outside cannot become markup


def test_page_makes_no_request_and_holds_its_pictures(whole_run: tuple[RunConfig, Folder]) -> None:
    _, folder = whole_run
    html = page(folder)
    assert not re.findall(r"https?:|//[a-z]|@import|<link|<iframe|<base", re.sub(r"base64,[A-Za-z0-9+/=]+", "", html))
    sources = re.findall(r"(?:src|srcset|href|url)\s*[=(]\s*[\"']?([^\"' >]*)", html)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "default-src 'none'" in html
    for name in ("samples", "extremes", "imperceptibility", "spectrum", "accuracy", "classes", "surrogate", "similarity"):
        assert folder.read(f"report/{name}.png").startswith(b"\x89PNG")
    assert html.count("<picture>") == 8


def test_protected_and_other_classes_are_reported_apart(mixed_run: tuple[RunConfig, Folder]) -> None:
    config, folder = mixed_run
    rows = {(row["network"], row["data"]): row for row in read_table(folder, "victim/results.parquet").to_pylist()}
    known, text = headline(RunResults.read(folder)), words(folder)
    assert known["clean_other_accuracy"] == rows["resnet8", "clean"]["other_accuracy"]
    assert known["protected_other_accuracy"] == rows["resnet8", "protected"]["other_accuracy"]
    assert "protected_other_accuracy_std" not in known  # a single seed has no deviation
    assert (known["protected_images"], known["protected_classes"], known["targets"]) == (24, 2, "random-class")
    assert "24 of 36 images, from 2 of 3 classes, protected by sep-fa (random-class targets)" in text
    for sentence in findings(RunResults.read(folder)).sentences:
        assert sentence in text
    assert f"Other classes, from the release {known['protected_other_accuracy']:.1f} %" in text
    assert "Protected classes (2) horizontal, vertical Other classes (1) diagonal" in text
    for line in ("other classes, from your originals", "other classes, from the release"):
        assert line in summary.summary(config, RunResults.read(folder))
    for network in ("resnet8", "vit-small"):  # the transfer table: a line per victim
        shown = [rows[network, "clean"]["last_accuracy"]] + [rows[network, "protected"][f"{kind}_accuracy"] for kind in FIGURES]
        shown += [rows[network, data]["other_accuracy"] for data in ("clean", "protected")]
        assert " ".join([network, *(f"{figure:.1f}" for figure in shown), "1"]) in text


def test_images_that_were_released_as_they_are_say_nothing_about_quality(mixed_run: tuple[RunConfig, Folder]) -> None:
    _, folder = mixed_run
    table = read_table(folder, "protect/samples.parquet").to_pylist()
    changed = [row["psnr_db"] for row in table if row["label"] != 0]
    assert {row["linf_levels"] for row in table if row["label"] == 0} == {0}
    assert len(changed) == 24
    assert headline(RunResults.read(folder))["psnr_db"] == pytest.approx(statistics.fmean(changed))
    results = RunResults.read(folder)
    places, places_changed = results.samples.shown([1, 2]), results.samples.changed
    assert [image.class_name for _, image in image_pairs(folder, results.manifests, places)] == ["horizontal", "vertical"]
    assert results.measured_images == 12
    assert len(places_changed) == 24
    for _, image in image_pairs(folder, results.manifests, places_changed):
        assert image.class_name != "diagonal"
        assert (image.clean != image.protected).any()


def test_similarity_is_told_as_the_protect_stage_found_it(mixed_run: tuple[RunConfig, Folder], whole_run: tuple[RunConfig, Folder]) -> None:
    _, folder = mixed_run
    said = json.loads(folder.read("protect/similarity.json"))
    first, second = (own["cosines"][0][1] for own in said["checkpoints"])
    known = headline(RunResults.read(folder))
    assert known["gradient_similarity"] == pytest.approx((first + second) / 2)
    assert known["network_similarity"] == pytest.approx(said["networks"]["cosines"][0][1])
    assert [matrix.labels for matrix in RunResults.read(folder).similarities] == [["1", "2"], ["1", "2"], ["resnet8", "vit-small"]]
    assert "network_similarity" not in headline(RunResults.read(whole_run[1]))
    assert "between networks, of their last checkpoints" in words(folder)
    assert "between networks" not in words(whole_run[1])


@pytest.mark.parametrize("name", ["whole_run", "mixed_run"])
def test_command_and_settings_on_the_page_give_the_configuration_back(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    config, folder = request.getfixturevalue(name)
    tree = RunResults.read(folder).configuration(config)
    again = parse(command(tree).split()[2:])
    assert to_tree(again) == to_tree(config)
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(tree))
    resolved = replace(config, protect=config.protect.resolved())
    assert from_tree(yaml.safe_load((tmp_path / "settings.yaml").read_text())) == resolved


def test_settings_shown_are_those_a_stage_was_made_with(whole_run: tuple[RunConfig, Folder]) -> None:
    config, folder = whole_run
    other = replace(config, protect=replace(config.protect, steps=29), tracking_uri="http://user:secret@host")
    tree = RunResults.read(folder).configuration(other)
    assert tree["protect"]["steps"] == config.protect.steps
    assert "secret" not in str(tree)


@pytest.mark.parametrize("stages", [("pack",), ("pack", "surrogate"), ("pack", "surrogate", "protect")])
def test_any_beginning_of_a_run_can_be_reported(stages: tuple[str, ...], tmp_path: Path) -> None:
    config, folder = finished_run.write(tmp_path / "part", stages)
    manifest = report.execute(config, folder)
    drawn = {"pack": set(), "surrogate": {"surrogate"}, "protect": {"surrogate", *OF_IMAGES}}[stages[-1]]
    assert set(manifest.counts["pictures"]) == drawn
    assert "No victim is finished yet" in words(folder)
    assert "trained on your originals" not in summary.summary(config, RunResults.read(folder))
    for figure in ("PSNR", "gradients an image"):
        assert (figure in summary.summary(config, RunResults.read(folder))) == ("protect" in stages)


def test_report_is_made_again_only_when_there_is_something_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, folder = finished_run.write(tmp_path / "run", ("pack",))
    first = report.execute(config, folder)
    written = os.stat(folder.file("report/index.html")).st_mtime_ns
    assert report.execute(config, folder) == first
    assert os.stat(folder.file("report/index.html")).st_mtime_ns == written
    finished_run.write(tmp_path / "run", ("surrogate",))
    assert report.execute(config, folder).counts["pictures"] == ["surrogate"]
    monkeypatch.setattr(report, "VERSION", report.VERSION + 1)
    written = os.stat(folder.file("report/index.html")).st_mtime_ns
    report.execute(config, folder)
    assert os.stat(folder.file("report/index.html")).st_mtime_ns != written


def test_results_of_an_earlier_protection_are_left_out(copied_run: tuple[RunConfig, Folder]) -> None:
    config, folder = copied_run
    redone = replace(config, protect=replace(config.protect, steps=2), overwrite=True)
    finished_run.write(Path(folder.path), ("protect",), redone)
    assert list(RunResults.read(folder).manifests) == ["pack", "surrogate", "protect"]
    assert "protected_accuracy" not in headline(RunResults.read(folder))
    report.execute(redone, folder)
    assert "No victim is finished yet" in words(folder)


def test_a_run_of_before_these_were_measured_is_reported_without_them(copied_run: tuple[RunConfig, Folder]) -> None:
    config, folder = copied_run
    table = read_table(folder, "protect/samples.parquet")
    write_table(folder.child("protect"), "samples.parquet", table.drop_columns(["ssim", "changed_percent"]))
    assert not verify(folder).faults
    folder.child("report").delete()
    report.execute(config, folder)
    known = headline(RunResults.read(folder))
    assert known["psnr_db"] == pytest.approx(statistics.fmean(table["psnr_db"].to_pylist()))
    assert not {"ssim", "changed_percent"} & known.keys()
    assert "SSIM 0." not in words(folder)
    assert folder.exists("report/imperceptibility.png")


def test_images_that_were_left_as_they_are_are_in_no_spectrum(copied_run: tuple[RunConfig, Folder]) -> None:
    config, folder = copied_run
    table = read_table(folder, "protect/samples.parquet")
    *unchanged, last = table.to_pylist()
    for row in unchanged:
        row["linf_levels"] = 0
    write_table(folder.child("protect"), "samples.parquet", rows_to_table([*unchanged, last], table.schema))
    assert RunResults.read(folder).samples.changed == [(last["key"], last["shard"])]
    folder.child("report").delete()
    assert "spectrum" in report.execute(config, folder).counts["pictures"]


def test_nothing_to_report_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run at least the pack stage"):
        report.execute(finished_run.configuration(tmp_path), Folder.open(str(tmp_path)))


def test_summary_is_complete_and_does_not_load_what_draws(whole_run: tuple[RunConfig, Folder]) -> None:
    config, folder = whole_run
    text = summary.summary(config, RunResults.read(folder))
    known = headline(RunResults.read(folder))
    for part in (
        f"{known['clean_accuracy']:.1f} %",
        f"{known['protected_relabelled_accuracy']:.1f} %",
        f"{known['psnr_db']:.1f} dB",
        f"{folder.path}/report/index.html",
        f"ui RUN={folder.path}",
        f"python pipeline/verify.py --run {folder.path}".removeprefix("python"),
    ):
        assert part in text
    program = "import sys; from pipeline.stages import report; assert not {'matplotlib', 'mlflow'} & set(sys.modules), 'slow'"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_settings_of_a_finished_run_win_over_those_of_a_later_start(whole_run: tuple[RunConfig, Folder]) -> None:
    config, folder = whole_run
    later = replace(config, data="/elsewhere", seed=config.seed + 1)
    results = RunResults.read(folder)
    assert results.configuration(later) == results.configuration(config)


def test_the_page_says_what_verify_found_in_this_very_release(
    copied_run: tuple[RunConfig, Folder], capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = copied_run
    folder.child("report").delete()
    report.execute(replace(config, tracking_uri="none"), folder)
    assert f"python pipeline/audit.py --run {folder.uri}" in words(folder)
    assert "Verified not yet: run the command below" in words(folder)
    assert verify_command.main(["--run", folder.path]) == 0
    said = capsys.readouterr().out.strip()
    assert f"Verified {said}" in words(folder)
    release = Manifest.load(folder, "protect").digest
    assert RunResults.read(folder).found["verify"] == {"faults": 0, "first": [], "release_sha256": release, "said": said}
    finished_run.write(Path(folder.path), ("protect",), replace(config, protect=replace(config.protect, steps=2), overwrite=True))
    assert "verify" not in RunResults.read(folder).found  # of the earlier release
