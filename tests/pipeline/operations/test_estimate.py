"""The plan of a run: its counts, its hours by a worker's speed, and its word on what it does not know."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster.display import duration
from pipeline import plan
from pipeline.config.presets import preset
from pipeline.config.schema import RunConfig
from pipeline.operations import estimate
from pipeline.operations.estimate import (
    EPOCH_SECONDS,
    STAGE_SECONDS,
    Workers,
    Workload,
    human_bytes,
    stage_seconds,
    storage_bytes,
)
from pipeline.operations.probe import Images, Speed, Step, flops, fresh, look, ramp, scaled
from pipeline.operations.reference_gpu import reference_images, reference_speed
from pipeline.sources.scan import scan
from sep.countermeasures.registry import plan as plan_of
from sep.methods.registry import MOST_ROUNDS, Method
from tests.fixtures.pictures import class_folders

SMALL = preset("cifar10-small")
CONFIG = replace(SMALL, data="somewhere", protect=replace(SMALL.protect, method="sep-fa"))
WORK = Workload(train=5000, test=1000, released=5000, protected=2000, classes=10, parameters=(80_000,))
IMAGES = Images(
    torch.zeros(4, 3, 32, 32, dtype=torch.uint8), per_second=500, released_per_second=250, clean_bytes=2000, protected_bytes=2500
)
SPEED = Speed({"resnet8": 1000}, {"resnet8": Step(0.002, 0.001)}, {"resnet8": 4000})


def seconds(config: RunConfig, workers: int, gpu: bool = False) -> dict[str, float]:
    return stage_seconds(config, WORK, IMAGES, SPEED, Workers(workers, gpu, 4 if gpu else 1))


def test_gradients_are_counted_as_the_method_takes_them() -> None:
    assert WORK.gradients(CONFIG) == 2000 * 15 * 10
    varied = replace(CONFIG, protect=replace(CONFIG.protect, method="sep-fa-vr", inner_steps=5))
    assert WORK.gradients(varied) == 2000 * 15 * (10 + 5 - 1)
    chosen = replace(CONFIG, protect=replace(CONFIG.protect, epochs=(3, 7)))
    assert WORK.gradients(chosen) == 2000 * 15 * 2
    several = replace(CONFIG, surrogate=replace(CONFIG.surrogate, networks=("resnet8", "vit-small")))
    assert WORK.gradients(several) == 2 * WORK.gradients(CONFIG)
    assert WORK.gradients(replace(CONFIG, protect=replace(CONFIG.protect, method="noise"))) == 0
    assert WORK.gradients(replace(CONFIG, protect=replace(CONFIG.protect, method="aue"))) == 2000 * 15 * MOST_ROUNDS


def test_stages_take_what_their_parts_take() -> None:
    one = seconds(CONFIG, 1)
    assert one["pack"] == pytest.approx(STAGE_SECONDS + 6000 / 500)
    assert one["surrogate"] == pytest.approx(STAGE_SECONDS + 30 * (EPOCH_SECONDS + 39 * (0.002 + 128 * 0.001)))
    assert one["protect"] == pytest.approx(STAGE_SECONDS + (300_000 + 5000 * 10 / 2) / 1000 + 5000 / 250)
    assert one["victim"] == pytest.approx(STAGE_SECONDS + 2 * 30 * (39 * (0.002 + 128 * 0.001) + 1000 / 4000))


def test_more_workers_share_what_can_be_shared() -> None:
    one, two, many = (seconds(CONFIG, count) for count in (1, 2, 64))
    assert two["protect"] - STAGE_SECONDS == pytest.approx((one["protect"] - STAGE_SECONDS) / 2)
    assert two["victim"] == pytest.approx(many["victim"])  # two trials use at most two workers
    assert many["surrogate"] == seconds(CONFIG, 8)["surrogate"]  # on CPUs, eight ranks are the limit
    assert many["surrogate"] - STAGE_SECONDS > 30 * EPOCH_SECONDS
    three = seconds(replace(CONFIG, victim=replace(CONFIG.victim, seeds=(0, 1, 2))), 2)
    assert three["victim"] - STAGE_SECONDS == pytest.approx(3 * (two["victim"] - STAGE_SECONDS))
    gpu = seconds(CONFIG, 1, gpu=True)
    assert gpu["protect"] == pytest.approx(STAGE_SECONDS + 325)  # PNGs are coded in the meantime


@pytest.mark.parametrize(("method", "alone"), [("error-min-class", True), ("error-min", False)])
def test_one_worker_trains_against_the_noise(method: Method, alone: bool) -> None:
    config = replace(CONFIG, protect=replace(CONFIG.protect, method=method, checkpoints=None, noise_rounds=20))
    training = 20 * (10 * (0.002 + 128 * 0.001) + 2000 / 2 / 1000)
    gradients, coding = 2000 * 20 * (1 if alone else 15) / 1000, 5000 / 250
    assert seconds(config, 1)["protect"] == pytest.approx(STAGE_SECONDS + training + gradients + coding)
    shared = gradients if alone else gradients / 4
    assert seconds(config, 4)["protect"] == pytest.approx(STAGE_SECONDS + training + shared + coding / 4)
    assert seconds(config, 4, gpu=True)["protect"] == pytest.approx(STAGE_SECONDS + training + gradients + coding / 16)


def test_a_countermeasure_costs_what_its_epochs_take() -> None:
    def victims(*names: str) -> float:
        return seconds(replace(CONFIG, victim=replace(CONFIG.victim, countermeasures=names)), 1)["victim"] - STAGE_SECONDS

    training, testing = 39 * (0.002 + 128 * 0.001), 1000 / 4000
    assert victims("none", "grayscale") == pytest.approx(2 * victims("none"))
    cost = plan_of("adversarial-8").cost
    assert cost > 3
    assert victims("adversarial-8") == pytest.approx(2 * 30 * (cost * training + testing))
    assert victims("early-stop") == pytest.approx(2 * 6 * (training + testing))
    assert victims("none", "dilution-10", "clean-only-10") == pytest.approx(
        4 * 30 * (training + testing)
    )  # two of six trials have the same training as others


def test_storage_is_that_of_images_and_of_every_epoch() -> None:
    assert storage_bytes(CONFIG, WORK, IMAGES) == {"pack": 12e6, "surrogate": 8 * 30 * 80_000, "protect": 2000 * 2500 + 3000 * 2000}


def test_a_line_is_fitted_to_steps_of_growing_size() -> None:
    sizes: list[int] = []

    def step(count: int) -> None:
        sizes.append(count)

    found = ramp(step, 6, 0.01)
    assert sizes[0] == 1
    assert sizes[-1] == 6
    assert found.each >= 0


def test_a_worker_known_by_its_gradients_is_scaled_by_the_arithmetic_of_each_network() -> None:
    config = replace(CONFIG, victim=replace(CONFIG.victim, networks=("resnet18",)))
    speed = scaled(2000, IMAGES.pixels, config, 10)
    assert speed.gradients == {"resnet8": 2000}
    assert speed.training["resnet8"].each == pytest.approx(1.5 / 2000)
    ratio = flops(fresh("resnet18", IMAGES.pixels, 10), IMAGES.pixels[:1]) / flops(fresh("resnet8", IMAGES.pixels, 10), IMAGES.pixels[:1])
    assert 40 < ratio < 50  # 0.56 and 0.0125 billion multiplications
    assert speed.evaluation["resnet18"] == pytest.approx(4000 / ratio)


def test_images_are_looked_at_as_they_would_be_packed(tmp_path: Path) -> None:
    class_folders(tmp_path, {"a": 3, "b": 3})
    base = preset("smoke")
    config = replace(base, data=str(tmp_path), stages=("pack",), pack=replace(base.pack, size=6, test_fraction=0.3))
    dataset = scan(config)
    found = look(dataset.split("train"), dataset.reader, config)
    assert found.pixels.shape == (len(dataset.split("train")), 3, 6, 6)
    assert 0 < found.clean_bytes <= found.protected_bytes
    assert found.per_second > 0
    assert found.released_per_second > 0


def test_times_and_sizes_are_readable() -> None:
    assert [duration(s) for s in (3.2, 89, 100, 5300, 36_000)] == ["3 s", "89 s", "2 min", "88 min", "10.0 h"]
    assert [human_bytes(size) for size in (0, 999, 2_340_000, 1.5e12)] == ["0 B", "999 B", "2.34 MB", "1.5 TB"]


def test_a_described_gpu_is_planned_for_without_measuring(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--preset", "quickstart", "--executor", "local", "--gradients-per-second", "90000", "--price-per-gpu-hour", "2"]
    assert plan.main(command) == 0
    out = capsys.readouterr().out
    assert "30,000 gradients; one GPU: 90,000 gradients/s with resnet8" in out
    for count in (1, 8, 64):
        block = out.split(f"\n{count} GPU{'s' if count > 1 else ''} ")[1].split("\n\n")[0]
        assert "time" in block
        rows = {
            name: (float(hours), float(price))
            for name, hours, price in re.findall(r"  (\w+) +.* ([\d.e-]+) +([\d.]+)$", block, re.MULTILINE)
        }
        assert list(rows) == ["pack", "surrogate", "protect", "victim", "report", "all"]
        assert rows["all"][1] == pytest.approx(2 * rows["all"][0], rel=0.02, abs=0.006)
        assert rows["all"][0] == pytest.approx(sum(hours for name, (hours, _) in rows.items() if name != "all"), rel=0.02)
    assert re.search(r"storage: [\d.]+ MB \(pack [\d.]+ MB, surrogate [\d.]+ MB, protect [\d.]+ MB\)", out)


def test_a_cluster_without_a_gpu_is_told_what_one_would_take(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "PROBE_SECONDS", 0.1)
    assert plan.main(["--preset", "smoke", "--executor", "local"]) == 0
    out = capsys.readouterr().out
    assert out.count("GPU-hours") == 1
    block = out.split("\n1 GPU ")[1]
    assert re.findall(r"^  (\w+) ", block, re.MULTILINE) == ["pack", "surrogate", "protect", "victim", "report", "all"]
    assert "an NVIDIA H100, measured with resnet18 at 32 pixels and scaled by the operations of these networks" in block


def test_a_measured_gpu_is_scaled_by_the_operations_of_each_network() -> None:
    config = replace(CONFIG, victim=replace(CONFIG.victim, networks=("resnet18",)))
    small = reference_speed(config, IMAGES, 10)
    assert small.training["resnet18"].seconds(128) == pytest.approx(128 / 38_800)
    assert small.gradients["resnet8"] == pytest.approx(85_500 * small.training["resnet18"].each / small.training["resnet8"].each)
    large = reference_speed(config, replace(IMAGES, pixels=torch.zeros(1, 3, 48, 48)), 10)
    assert large.training["resnet18"].each == pytest.approx(2.25 * small.training["resnet18"].each, rel=0.01)
    assert reference_images(replace(IMAGES, per_second=20)).per_second < reference_images(IMAGES).per_second


def test_what_is_no_rate_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        plan.main(["--gradients-per-second", "0"])
    assert stopped.value.code == 2
    assert "gradients-per-second must be above 0" in capsys.readouterr().err
