from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pipeline.config.presets import from_tree, preset
from pipeline.config.schema import RunConfig
from pipeline.config.sweep_grid import grid
from pipeline.results import machine
from pipeline.results.card import _protection
from pipeline.results.card_table import table
from pipeline.results.machine import counted
from pipeline.results.published import PUBLISHED, PUBLISHED_FOR, follows_the_paper
from sep.ensemble import equally_spaced
from tests import ROOT

CIFAR10 = {"train": 50_000, "test": 10_000, "classes": [*range(10)], "height": 32, "width": 32}


def paper(**sections: Any) -> RunConfig:
    return from_tree({"preset": "paper", "data": "cifar10", **sections})


def test_the_preset_is_the_papers_protocol() -> None:
    """It takes 43.5 million gradients on 50,000 images for each of two budgets."""
    config = paper()
    low, high = (point.config.protect for point in grid(config))
    assert (low.eps_levels, high.eps_levels) == (2, 8)
    assert replace(low, eps_levels=8) == high == replace(preset("cifar10").protect, kernels="auto")
    assert equally_spaced(config.surrogate.epochs, high.per_network) == list(range(7, 120, 8))
    assert 50_000 * high.gradients_per_image(high.per_network) == 43_500_000
    usual = preset("cifar10")
    assert (config.surrogate, config.victim, replace(config.pack, shard_images=500)) == (usual.surrogate, usual.victim, usual.pack)
    assert (config.executor, config.tracking_uri, "report" in config.stages) == ("local", "none", False)


@pytest.mark.parametrize(
    ("sections", "compares"),
    [
        ({}, True),
        ({"protect": {"method": "sep"}}, True),
        ({"protect": {"method": "sep-fa", "checkpoints": 30}}, True),
        ({"protect": {"checkpoints": 15, "inner_steps": 15, "kernels": "plain", "precision": "float32", "batch_size": 64}}, True),
        ({"victim": {"seeds": [0, 1], "countermeasures": ["none", "jpeg-10"], "precision": "float32"}}, True),
        ({"surrogate": {"recorded": False}, "victim": {"recorded": False, "trials_per_gpu": 2}, "protect": {"tasks_per_gpu": 4}}, True),
        ({"protect": {"method": "sep-fa", "checkpoints": 15}}, False),
        ({"protect": {"method": "tap"}}, False),
        ({"protect": {"method": "sep-fa-drawn"}}, False),
        ({"protect": {"method": "sep-fa", "momentum": 0.9}}, False),
        ({"protect": {"method": "noise"}}, False),
        ({"views": ["none", "jpeg-10"]}, False),
        ({"protect": {"inner_steps": 5}}, False),
        ({"protect": {"steps": 6}}, False),
        ({"protect": {"targets": "per-sample"}}, False),
        ({"surrogate": {"epochs": 60}}, False),
        ({"victim": {"networks": ["resnet8"]}}, False),
        ({"victim": {"lr": 0.05}}, False),
    ],
)
def test_published_figures_are_compared_with_the_papers_settings_alone(sections: dict[str, Any], compares: bool) -> None:
    config = paper(**sections)
    assert follows_the_paper(config, CIFAR10) is compares
    assert follows_the_paper(replace(config, protect=config.protect.resolved()), CIFAR10) is compares
    assert not follows_the_paper(config, {**CIFAR10, "train": 5000})


def figure(mean: float, std: float | None = None) -> dict[str, float | None]:
    return {"mean": mean, "std": std}


def card(**more: Any) -> dict[str, Any]:
    victims = [
        {"network": "resnet18", "countermeasure": countermeasure, "data": data, "release": release, "seeds": [0, 1]}
        | {f"{kind}_accuracy": figure(90.04, 0.25) for kind in ("last", "peak", "relabelled")}
        for data, release, countermeasure in (("clean", None, "none"), ("protected", "2/255", "none"), ("protected", "2/255", "jpeg-10"))
    ]
    protection = {"2/255": {"linf_levels": 2, "psnr_db": 43.21, "gradients_per_second": 12345.6}}
    seconds = {"pack": 12.0, "victim": 3456.0}
    return {"data": {"source": "photos"}, "victims": victims, "protection": protection, "seconds": seconds, "missing": [], **more}


def test_the_table_has_means_deviations_and_rates() -> None:
    lines = table(card(missing=["victim 8/255: 1 of 2 trainings done"])).splitlines()
    assert [line.split("  ")[0] for line in lines[1:4]] == [
        "resnet18, clean",
        "resnet18, protected, 2/255",
        "resnet18, protected, 2/255, jpeg-10",
    ]
    assert lines[1].split("  ")[-1].strip() == "2"
    assert lines[1].count("90.0 ± 0.2") == 3
    assert lines[4:] == [
        "2/255: largest change 2, PSNR 43.2 dB, 12,346 gradients/s",
        "seconds: pack 12, victim 3,456",
        "missing: victim 8/255: 1 of 2 trainings done",
    ]


def test_published_figures_stand_beside_the_victims_they_are_of() -> None:
    lines = table(card(published=PUBLISHED, published_for=PUBLISHED_FOR)).splitlines()
    assert [line.split()[-1] for line in lines[:4]] == ["published", "94.56", "14.68", "-"]
    assert lines[4].startswith("published: for CIFAR-10 as first released")
    assert lines[4].endswith("here: photos")


def test_a_run_without_victims_has_a_table() -> None:
    assert table(card(victims=[], protection={})) == "no victim is trained yet\nseconds: pack 12, victim 3,456"


def test_machines_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    first = counted([], 10.04)
    assert first == [{**machine.machine(), "starts": 1, "seconds": 10.0, "memory_gib": first[0]["memory_gib"]}]
    assert 0.05 < first[0]["memory_gib"] < 64
    again = counted(first, 5)
    assert [(each["starts"], each["seconds"]) for each in again] == [(2, 15.0)]
    monkeypatch.setattr(machine, "hardware", lambda: "another")
    elsewhere = counted(again, 7)
    assert elsewhere[0] == again[0]
    assert (elsewhere[1]["hardware"], elsewhere[1]["starts"], elsewhere[1]["seconds"]) == ("another", 1, 7)


def test_the_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3})
    assert machine.hardware().startswith("1 core, ")


@pytest.mark.parametrize(("of_noise", "rate"), [({}, 300.0), ({"noise_rounds": 24}, 100.0)])
def test_gradients_that_noise_took_before_it_was_added_have_their_time(of_noise: dict[str, int], rate: float) -> None:
    """Class means, which the other methods prepare, are no gradients."""
    counts = {"method": "error-min-class", "psnr_db": 31.0, "gradients": 600, **of_noise}
    manifest = SimpleNamespace(counts=counts, timing={"preparation_seconds": 4.0, "crafting_seconds": 2.0})
    results = SimpleNamespace(swept={}, manifests={"protect": manifest})
    assert _protection(cast(Any, results))["gradients_per_second"] == rate


def test_the_page_shows_the_card_that_is_published() -> None:
    made = json.loads((ROOT / "tests/benchmarks/reproduce-cpu.json").read_text())
    page = (ROOT / "docs/reproduce.md").read_text()
    assert all(line in page.splitlines() for line in table(made).splitlines() if not line.startswith("seconds"))
    assert all(f"{stage} {seconds:,.0f}" in page for stage, seconds in made["seconds"].items())
    clean, protected = (victim["last_accuracy"]["mean"] for victim in made["victims"])
    assert f"ends at {clean:.1f} %, the protected one at {protected:.1f} %" in " ".join(page.split())
