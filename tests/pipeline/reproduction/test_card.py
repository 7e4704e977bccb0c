from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from pipeline import reproduce
from pipeline.reproduction import resident
from pipeline.reproduction.card import PUBLISHED, PUBLISHED_FOR, table
from pipeline.reproduction.pieces import load, save, save_json
from sep.budget import psnr_db
from tests import ROOT
from tests.fixtures.small_reproduction import CHECKPOINTS, EPOCHS, INNER, STEPS, TEST, TRAIN, card, command, pictures, protected


def test_the_card_says_what_the_files_say(small_parquet: Path, reproduced: Path) -> None:
    found, clean = card(reproduced), pictures(TRAIN)[0]
    assert found["images"] == {"train": TRAIN, "test": TEST}
    assert [(v["data"], v["budget"], v["trainings"]) for v in found["victims"]] == [
        ("clean", None, 1),
        ("protected", "2/255", 1),
        ("protected", "8/255", 1),
    ]
    for victim, name in zip(found["victims"], ("clean", "eps2", "eps8"), strict=True):
        result = json.loads((reproduced / "victims" / f"{name}-seed0.json").read_text())
        accuracies = [row["test_accuracy"] for row in result["epochs"]]
        assert len(accuracies) == EPOCHS
        assert victim["last_accuracy"] == {"mean": pytest.approx(accuracies[-1], abs=0.01), "std": None}
        assert victim["peak_accuracy"]["mean"] == pytest.approx(max(accuracies), abs=0.01)
        assert victim["relabelled_accuracy"]["mean"] >= victim["last_accuracy"]["mean"]
    for eps_levels in (2, 8):
        of = found["protection"][f"{eps_levels}/255"]
        assert of["gradients"] == TRAIN * STEPS * (CHECKPOINTS + INNER)
        assert of["psnr_db"] == pytest.approx(float(psnr_db(protected(reproduced, eps_levels), clean).mean()), abs=0.01)
        assert of["gradients_per_second"] > 0
    assert list(found["seconds"]) == list(found["memory_gib"]) == ["data", "surrogate", "means", "craft 2/255", "craft 8/255", "victims"]
    (machine,) = found["machines"]
    assert machine["versions"]["torch"] == torch.__version__
    assert machine["stages"] == list(found["seconds"])
    assert found["data"] == {"folder": small_parquet.name, "sha256": resident.digest(small_parquet)}
    assert found["missing"] == []
    assert "published" not in found
    assert found["command"].startswith("python pipeline/reproduce.py --data ")


def test_several_trainings_give_a_spread(small_parquet: Path, reproduced: Path) -> None:
    assert reproduce.main(command(small_parquet, reproduced, victim_seeds=[0, 1])) == 0
    found = card(reproduced)
    assert [victim["seeds"] for victim in found["victims"]] == [[0, 1]] * 3
    last = [json.loads((reproduced / "victims" / f"eps2-seed{seed}.json").read_text())["epochs"][-1]["test_accuracy"] for seed in (0, 1)]
    expected = {"mean": sum(last) / 2, "std": abs(last[0] - last[1]) / 2**0.5}
    assert found["victims"][1]["last_accuracy"] == pytest.approx(expected, abs=0.01)
    assert f"{expected['mean']:.1f} ± {expected['std']:.1f}" in table(found)


def test_the_table_names_published_figures_where_they_compare(reproduced: Path) -> None:
    found = card(reproduced)
    assert "published" not in table(found)
    found["published"] = {"clean" if eps is None else f"{eps}/255": accuracy for eps, accuracy in PUBLISHED.items()}
    found["published_for"] = PUBLISHED_FOR
    lines = table(found).splitlines()
    assert lines[0].endswith("published")
    assert [line.split()[-1] for line in lines[1:4]] == ["94.56", "14.68", "3.85"]
    assert lines[4].startswith("published: for CIFAR-10 as first released")
    assert lines[4].endswith(f"here: {found['data']['folder']}")


def test_the_card_tells_machines_apart(small_parquet: Path, reproduced: Path, tmp_path: Path) -> None:
    """Those that computed, whichever writes it: a chunk and the last epochs of a victim come from elsewhere."""
    out = Path(shutil.copytree(reproduced, tmp_path / "out"))
    other = {"hardware": "another", "versions": {"torch": "2.11"}}
    chunk = load(out / "craft" / "eps8" / "000016-000032.pt")
    assert chunk
    save(out / "craft" / "eps8" / "000016-000032.pt", chunk | {"machine": other})
    victim = json.loads((out / "victims" / "clean-seed0.json").read_text())
    save_json(out / "victims" / "clean-seed0.json", victim | {"machines": [*victim["machines"], other]})
    assert reproduce.main(command(small_parquet, out)) == 0
    here, elsewhere = card(out)["machines"]
    assert here["stages"] == list(card(out)["seconds"])
    assert elsewhere == {**other, "stages": ["craft 8/255", "victims"]}


def test_a_card_for_the_papers_settings_says_what_is_published(small_parquet: Path, tmp_path: Path) -> None:
    found = {}
    for steps in ("30", "6"):
        flags = [
            "--data",
            str(small_parquet),
            "--out",
            str(tmp_path / steps),
            "--steps",
            steps,
            "--device",
            "cpu",
            "--stages",
            "data",
            "card",
        ]
        assert reproduce.main(flags) == 0
        found[steps] = card(tmp_path / steps)
    assert found["30"]["published"] == {"clean": 94.56, "2/255": 14.68, "8/255": 3.85}
    assert found["30"]["published_for"] == PUBLISHED_FOR
    assert not {"published", "published_for"} & set(found["6"])


def test_a_run_without_victims_has_a_card(small_parquet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce.main(command(small_parquet, tmp_path / "out", stages=["data", "card"])) == 0
    assert "no victim is trained yet" in capsys.readouterr().out
    found = card(tmp_path / "out")
    assert (found["surrogate"], found["protection"], found["victims"]) == (None, {}, [])
    assert list(found["seconds"]) == ["data"]


def test_the_page_says_what_the_card_says() -> None:
    made = json.loads((ROOT / "tests/benchmarks/reproduce-cpu.json").read_text())
    page = " ".join((ROOT / "docs/reproduce.md").read_text().split())
    clean, protected = (victim["last_accuracy"]["mean"] for victim in made["victims"])
    assert f"the clean victim ends at {clean:.1f} %, the protected one at {protected:.1f} %" in page
    assert f"at {made['protection']['8/255']['gradients_per_second']:,.0f} gradients/s" in page
