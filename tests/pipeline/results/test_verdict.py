"""The verdict is what the figures say, names what nobody tested, and comes with commands that can be pasted."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest

from pipeline.config.command_line import parse
from pipeline.config.presets import preset
from pipeline.config.schema import RunConfig
from pipeline.results.commands import PROJECT, here
from pipeline.results.next_steps import next_steps
from pipeline.results.run_results import RunResults
from pipeline.results.thresholds import interval
from pipeline.results.verdict import ATTEMPTS, Verdict, held_out, untested, verdict
from pipeline.results.victims import VictimPair
from pipeline.storage.folder import Folder
from sep.countermeasures.registry import COUNTERMEASURES
from sep.countermeasures.standing import STANDING
from tests.fixtures import finished_run
from tests.pipeline.results.test_findings import found_of, pair

NEVER_TRIED = (
    "Not tested: JPEG, grayscale, blur, adversarial training, UEraser, orthogonal projection, pretrained networks, contrastive learning, "
    "other networks."
)


def results_of(measured: Sequence[VictimPair], tests: int = 10_000) -> RunResults:
    results = RunResults(Folder.open("/nowhere"), found_of(10))
    vars(results).update(pairs=tuple(measured), measured_images=tests)  # instead of reading them from files
    return results


def verdict_on(measured: Sequence[VictimPair], tests: int = 10_000) -> Verdict:
    return verdict(results_of(measured, tests))


def test_a_release_that_holds_where_it_was_tested() -> None:
    said = verdict_on([pair(94.0, 10.2, 83.0)])
    assert said.label == "holds"
    assert said.sentences == ("Holds against plain training.", "Weak: renaming the predictions regains 87 %.", NEVER_TRIED)


def test_nobody_regains_more_than_was_lost() -> None:
    assert "renaming the predictions regains 100 %" in str(verdict_on([pair(60.0, 20.0, 70.0)]))


def test_countermeasures_are_told_apart_by_what_they_do() -> None:
    said = verdict_on(
        [
            pair(94.0, 10.2, 12.0),
            pair(94.0, 10.2, 12.0, network="resnet18"),
            pair(93.0, 12.0, 14.0, "gaussian-blur"),
            pair(90.0, 50.0, 52.0, "ueraser"),
            pair(85.4, 84.4, 84.5, "jpeg-10"),
            pair(80.0, 78.0, 79.0, "grayscale+adversarial-4"),
        ]
    )
    assert str(said) == (
        "Holds against plain training and gaussian-blur. Weak: ueraser regains 50 %. Undone by jpeg-10 and grayscale+adversarial-4. "
        "Not tested: orthogonal projection, pretrained networks, contrastive learning."
    )


def test_a_network_that_the_protection_does_not_touch_is_named() -> None:
    assert "Does not hold against vit-small." in str(verdict_on([pair(94.0, 10.2, 12.0), pair(80.0, 78.0, 79.0, network="vit-small")]))


def test_two_changes_of_pictures_are_held_out_of_the_mix() -> None:
    plain, crafted = pair(94.0, 10.2, 12.0), pair(93.0, 12.0, 14.0, "jpeg-10")

    def seen(*measured: VictimPair, views: Sequence[str] = ("none", "jpeg-10", "jpeg-75", "blur")) -> RunResults:
        results = results_of([plain, crafted, *measured])
        results.manifests["protect"].counts["views"] = list(views)
        return results

    said = "not crafted for"
    assert said in str(verdict(seen()))
    assert held_out(seen()) == ["resize-50", "webp-75"]
    assert held_out(seen(views=("none", "webp-75"))) == ["resize-50"]  # jpeg-10 is one
    one = seen(pair(93.0, 12.0, 14.0, "resize-50"), pair(90.0, 30.0, 30.0, "adversarial-4"))
    assert held_out(one) == ["webp-75"]
    assert said in str(verdict(one))
    two = seen(pair(93.0, 12.0, 14.0, "resize-50"), pair(93.0, 12.0, 14.0, "grayscale+jpeg-10"))
    assert held_out(two) == []
    assert said not in str(verdict(two))
    assert held_out(results_of([plain])) == []


HEARD, DEAF, UNTAUGHT = pair(92.0, 12.0, 13.0), pair(91.0, 90.0, 90.0, network="vgg16-bn"), pair(15.0, 10.0, 11.0, network="vit-small")


@pytest.mark.parametrize(
    ("measured", "label"),
    [
        ([HEARD, DEAF], "holds in part"),
        ([UNTAUGHT, DEAF], "does not hold"),
        ([UNTAUGHT, HEARD], "holds"),
        ([UNTAUGHT], "not measured"),
        ([HEARD, pair(88.0, 87.0, 87.0, "jpeg-10")], "holds in part"),
        ([pair(90.0, 12.0, 13.0, "grayscale"), pair(88.0, 87.0, 87.0, "jpeg-10")], "holds in part"),
        ([pair(88.0, 87.0, 87.0, "jpeg-10")], "does not hold"),
    ],
)
def test_the_order_of_victims_decides_nothing(measured: list[VictimPair], label: str) -> None:
    assert {verdict_on(rows).label for rows in permutations(measured)} == {label}


def test_what_was_tried_in_vain_is_said_to_be() -> None:
    said = str(verdict_on([pair(90.0, 12.0, 13.0, "grayscale"), pair(88.0, 87.0, 87.0, "jpeg-10")]))
    assert said.startswith("Holds against grayscale. Undone by jpeg-10. Not tested: blur,")
    said = str(verdict_on([HEARD, pair(18.0, 17.0, 17.0, "adversarial-8")]))
    assert "Says nothing of adversarial-8, with which even the originals teach hardly more than guessing." in said
    assert "adversarial training" in said.partition("Not tested:")[2]


@pytest.mark.parametrize(
    ("figures", "label", "starts"),
    [
        ((94.0, 90.0, 91.0), "does not hold", "Does not hold against plain training: the release teaches 90.0 %, the originals 94.0 %."),
        ((94.0, 45.0, 46.0), "holds in part", "Holds in part against plain training: the release still teaches 45.0 %."),
        ((94.0, 3.0, 4.0), "holds", "Holds against plain training."),
        ((10.5, 10.0, 11.0), "not measured", "Says nothing yet: even the originals teach the victim hardly more than guessing."),
    ],
)
def test_it_goes_with_the_figures(figures: tuple[float, float, float], label: str, starts: str) -> None:
    said = verdict_on([pair(*figures)])
    assert (said.label, said.sentences[0]) == (label, starts)


def test_few_test_images_are_said_to_be_few() -> None:
    assert "With 18 test images, 11.0 % may be anything from 3 to 33 %." in str(verdict_on([pair(94.0, 11.0, 12.0)], tests=18))
    assert "test images" not in str(verdict_on([pair(94.0, 11.0, 12.0)]))


def test_the_interval_is_the_one_of_wilson() -> None:
    for share, tests, expected in ((0.0, 10, (0.0, 27.8)), (50.0, 100, (40.4, 59.6)), (100.0, 10, (72.2, 100.0))):
        assert interval(share, tests) == pytest.approx(expected, abs=0.05)


def test_what_is_worth_testing_can_be_asked_for() -> None:
    assert {attempt.countermeasure for attempt in ATTEMPTS} <= COUNTERMEASURES.keys()
    names = ("none", "jpeg-30", "grayscale+adversarial-4", "pretrained-frozen")
    tried = [pair(94.0, 10.0, 12.0, name) for name in names]
    assert [attempt.name for attempt in untested(results_of(tried))] == ["blur", "UEraser", "orthogonal projection", "contrastive learning"]


def test_an_audit_is_the_next_step_where_adversaries_are_left(tmp_path: Path) -> None:
    config, folder = finished_run.write(tmp_path / "a run")
    steps = {step.name: step for step in next_steps(config, RunResults.read(folder))}
    assert shlex.split(steps["audit"].command) == ["python", "pipeline/audit.py", "--run", folder.uri]
    assert steps["audit"].why.endswith("jpeg-10, grayscale, gaussian-blur, adversarial-8 and 4 more")
    assert {attempt.countermeasure for attempt in ATTEMPTS} <= {*STANDING}


def test_a_certificate_is_the_next_step_of_a_release_that_holds_and_has_none() -> None:
    results = results_of([pair(94.0, 10.2, 12.0)])
    steps = {step.name: step.command for step in next_steps(preset("smoke"), results)}
    assert steps["certify"] == "python pipeline/certify.py --run /nowhere"
    vars(results).update(found={"certify": {}})
    assert steps.keys() - {step.name for step in next_steps(preset("smoke"), results)} == {"certify"}


def test_before_anything_is_measured(tmp_path: Path) -> None:
    config, folder = finished_run.write(tmp_path / "run", ("pack", "surrogate"))
    results = RunResults.read(folder)
    assert (verdict(results).label, next_steps(config, results)) == ("not measured", [])
    finished_run.write(tmp_path / "run", ("protect",))
    results = RunResults.read(folder)
    assert str(verdict(results)) == "Not measured: no victim is finished that was trained on this release alone."
    assert [step.name for step in next_steps(config, results)] == ["measure", "verify", "export", "publish", "keep back"]


def test_a_run_without_test_images_is_measured_in_another(tmp_path: Path) -> None:
    config, folder = finished_run.write(tmp_path / "run", ("pack", "surrogate", "protect"))
    results = RunResults.read(folder)
    results.manifests["pack"].counts["test"] = 0  # as packed from a folder without test images
    (step,) = (step for step in next_steps(replace(config, executor="local"), results) if step.name == "measure")
    asked = parse(shlex.split(step.command)[2:])
    assert (asked.run, asked.pack.test_fraction, asked.stages) == (f"{config.run}-measured", 0.1, RunConfig.stages)
    assert (asked.data, asked.protect.resolved(), asked.executor) == (config.data, config.protect.resolved(), "local")


def test_a_command_that_goes_on_keeps_to_the_machine(tmp_path: Path) -> None:
    mixed = finished_run.mixed_configuration(tmp_path / "run")
    config, folder = finished_run.write(tmp_path / "run", ("pack", "surrogate", "protect"), mixed)
    config = replace(
        config,
        executor="local",
        tracking_uri="none",
        memory_limit_mb=64,
        cache_gb=0.5,
        workers=3,
        surrogate=replace(config.surrogate, recorded=False),
        protect=replace(config.protect, batch_size=5),
        victim=replace(config.victim, trials_per_gpu=2),
    )
    steps = {step.name: step for step in next_steps(config, RunResults.read(folder))}
    asked = parse(shlex.split(steps["measure"].command)[2:])
    wanted = replace(config, victim=asked.victim, protect=config.protect.resolved(), stages=asked.stages, overwrite=True)
    assert replace(asked, protect=asked.protect.resolved()) == wanted
    assert asked.victim == config.victim


def test_commands_can_be_pasted_whatever_the_run_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "it's my $HOME run"
    config, folder = finished_run.write(path, ("pack", "surrogate", "protect"), finished_run.mixed_configuration(path))
    steps = {step.name: step for step in next_steps(replace(config, executor="local"), RunResults.read(folder))}
    assert shlex.split(steps["verify"].command) == ["python", "pipeline/verify.py", "--run", str(path)]
    assert shlex.split(steps["export"].command)[-2:] == ["--to", f"{path}-export"]
    asked = parse(shlex.split(steps["measure"].command)[2:])
    assert (asked.run, asked.stages, asked.overwrite, asked.executor) == (str(path), ("victim", "report"), True, "local")
    assert asked.victim == config.victim
    assert (asked.surrogate, asked.protect.resolved()) == (config.surrogate, config.protect.resolved())
    monkeypatch.chdir(tmp_path)  # where neither pipeline/ nor a Makefile is
    words = shlex.split(here(steps["verify"].command))
    assert words[1:] == [str(PROJECT / "pipeline/verify.py"), "--run", str(path)]
    assert shlex.split(here(f"make ui RUN={shlex.quote(str(path))}")) == ["make", "-C", str(PROJECT), "ui", f"RUN={path}"]
