from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline import reproduce
from pipeline.config.seeds import generator
from pipeline.reproduction.pieces import Clock, TimeIsUp, load, save
from pipeline.reproduction.protocol import Run
from pipeline.reproduction.stages import STAGES, ensemble
from sep.budget import linf_levels
from sep.craft import CraftConfig, craft
from sep.ensemble import Member, class_sums, freeze
from sep.models import build
from tests import ROOT
from tests.fixtures.small_reproduction import (
    CHECKPOINTS,
    CHUNK,
    CLASSES,
    EPOCHS,
    INNER,
    SIZE,
    STEPS,
    TRAIN,
    card,
    command,
    figures,
    pictures,
    protected,
)


@pytest.fixture
def copy(reproduced: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    return Path(shutil.copytree(reproduced, tmp_path / "out"))


def test_protected_images_keep_their_order_and_budget(reproduced: Path) -> None:
    clean, _ = pictures(TRAIN)
    for eps_levels in (2, 8):
        images = protected(reproduced, eps_levels)
        assert images.shape == clean.shape
        assert linf_levels(images, clean).tolist() == [2] * TRAIN  # two steps, one level each
    assert len(list((reproduced / "craft" / "eps2").iterdir())) == 3  # 16 + 16 + 8


def test_chunks_are_what_the_method_makes_of_the_checkpoints(reproduced: Path) -> None:
    """Equally spaced epochs, each with means of its own network over all training images as they are."""
    images, labels = pictures(TRAIN)[0], torch.tensor(pictures(TRAIN)[1])
    kept = load(reproduced / "data.pt")
    assert kept
    assert sorted(path.name for path in (reproduced / "means").iterdir()) == ["epoch_0000.pt", "epoch_0002.pt"]
    members = []
    for epoch in (0, 2):
        state, means = load(reproduced / "surrogate" / f"epoch_{epoch:04d}.pt"), load(reproduced / "means" / f"epoch_{epoch:04d}.pt")
        assert state
        assert means
        network = build("resnet8", CLASSES, SIZE, kept["mean"], kept["std"])
        network.load_state_dict(state["network"])
        sums, counts = class_sums(freeze(network), [(images, labels)], CLASSES)
        assert counts.tolist() == [TRAIN // CLASSES] * CLASSES
        assert torch.allclose(means["means"], (sums / counts[:, None]).float(), rtol=1e-4, atol=1e-5)
        members.append(Member(freeze(network), means["means"]))
    for eps_levels in (2, 8):
        config = CraftConfig(method="sep-fa-vr", eps_levels=eps_levels, steps=STEPS, checkpoints=CHECKPOINTS, inner_steps=INNER)
        rows = slice(CHUNK, 2 * CHUNK)
        targets = (labels[rows] + CLASSES // 2) % CLASSES
        expected = craft(members, images[rows], targets, config, generator(0, "craft", eps_levels, CHUNK))
        assert torch.equal(protected(reproduced, eps_levels)[rows], expected)


def test_any_number_of_stops_gives_the_same(small_parquet: Path, reproduced: Path, tmp_path: Path) -> None:
    """Every start does the data, one epoch, one checkpoint's means or one chunk, and ends with 3 until all is done."""
    out = tmp_path / "out"
    codes: list[int] = []
    while not codes or (codes[-1] == 3 and len(codes) < 100):
        codes.append(reproduce.main(command(small_parquet, out, minutes=0)))
    pieces = 1 + EPOCHS + CHECKPOINTS + 2 * 3 + 3 * EPOCHS
    assert codes == [3] * (pieces - 1) + [0]
    assert figures(out) == figures(reproduced)
    for eps_levels in (2, 8):
        assert torch.equal(protected(out, eps_levels), protected(reproduced, eps_levels))
    for epoch in range(EPOCHS):
        mine, other = (load(folder / "surrogate" / f"epoch_{epoch:04d}.pt") for folder in (out, reproduced))
        assert mine
        assert other
        assert all(torch.equal(value, other["network"][name]) for name, value in mine["network"].items())


def test_what_is_finished_is_not_done_again(small_parquet: Path, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*") if path.is_file() and path.name != "card.json"}
    was = figures(copy)
    assert reproduce.main(command(small_parquet, copy)) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert figures(copy) == was
    assert "epoch " not in capsys.readouterr().err


def test_every_stop_leaves_a_card_of_what_there_is(small_parquet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, kept = tmp_path / "out", []
    asked = command(small_parquet, out, minutes=0, eps_levels=[2])
    while reproduce.main(asked) == 3:
        kept.append(card(out))
        assert f"not there yet: {kept[-1]['missing'][0]}" in capsys.readouterr().out
    begun = [f"surrogate, {epoch} of {EPOCHS} epochs done" for epoch in range(EPOCHS)]
    assert [found["missing"][0] for found in kept[:EPOCHS]] == begun
    crafting = 1 + EPOCHS + CHECKPOINTS
    assert [found["missing"][0] for found in kept[crafting : crafting + 2]] == [f"images at 2/255, {n} of 3 chunks done" for n in (1, 2)]
    assert "craft 2/255" in kept[crafting]["seconds"]
    assert kept[crafting]["protection"] == {}
    assert kept[crafting + 2]["protection"]["2/255"]["linf_levels"] == 2
    assert kept[-1]["missing"] == [f"victims/eps2-seed0, {EPOCHS - 1} of {EPOCHS} epochs done"]
    assert [victim["data"] for victim in kept[-1]["victims"]] == ["clean"]
    assert card(out)["missing"] == []


def test_no_card_is_written_before_there_is_data_or_where_it_is_not_asked_for(
    small_parquet: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(run: Run) -> None:
        raise TimeIsUp

    monkeypatch.setitem(STAGES, "data", stop)
    assert reproduce.main(command(small_parquet, tmp_path / "new", minutes=9)) == 3
    (copy / "card.json").unlink()
    assert reproduce.main(command(small_parquet, copy, minutes=9, stages=["data"])) == 3
    assert not list(tmp_path.rglob("card.json"))


@pytest.mark.parametrize("method", ["sep-fa-vr", "sep"])
def test_nothing_is_made_from_a_surrogate_that_has_not_finished(
    method: str, small_parquet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though every epoch it needs is there: it may be trained again, and differ."""
    out = tmp_path / "out"
    asked = command(small_parquet, out, method=method)
    assert reproduce.main([*asked, "--stages", "data", "surrogate"]) == 0
    finished = (out / "surrogate.json").rename(tmp_path / "surrogate.json")
    for stage in ("means", "craft") if method == "sep-fa-vr" else ("craft",):
        capsys.readouterr()
        assert reproduce.main([*asked, "--stages", stage]) == 1
        assert "surrogate.json is not there, the surrogate has not finished: run the stage `surrogate`" in capsys.readouterr().err
    assert not {path.name for path in out.iterdir()} & {"means", "craft"}
    finished.rename(out / "surrogate.json")
    assert reproduce.main([*asked, "--stages", "means", "craft"]) == 0


def test_kernels_and_pieces_may_change_between_starts(small_parquet: Path, copy: Path, reproduced: Path) -> None:
    """What is there stays as it is, and the gaps are filled; the card names the kernels of both."""
    folder = copy / "craft" / "eps8"
    whole = [path.name for path in sorted(folder.iterdir())]
    assert whole == ["000000-000016.pt", "000016-000032.pt", "000032-000040.pt"]
    (folder / whole[0]).unlink()
    changed = {"kernels": "plain", "chunk_images": 10, "batch_size": 3}
    assert reproduce.main(command(small_parquet, copy, **changed)) == 0
    assert [path.name for path in sorted(folder.iterdir())] == ["000000-000010.pt", "000010-000016.pt", *whole[1:]]
    assert linf_levels(protected(copy, 8), pictures(TRAIN)[0]).tolist() == [2] * TRAIN
    assert torch.equal(protected(copy, 8)[CHUNK:], protected(reproduced, 8)[CHUNK:])
    found = card(copy)
    assert {budget: of["kernels"] for budget, of in found["protection"].items()} == {"2/255": ["fused"], "8/255": ["fused", "plain"]}
    assert {name: found["settings"][name] for name in changed} == changed
    first = load(folder / "000000-000010.pt")
    assert first
    members = ensemble(reproduce.plan(reproduce.parser().parse_args(command(small_parquet, copy, kernels="plain")), Clock(None)))
    config = CraftConfig(method="sep-fa-vr", eps_levels=8, steps=STEPS, checkpoints=CHECKPOINTS, inner_steps=INNER, kernels="plain")
    images, labels = pictures(TRAIN)[0][:10], torch.tensor(pictures(TRAIN)[1])[:10]
    expected = craft(members, images, (labels + CLASSES // 2) % CLASSES, config, generator(0, "craft", 8, 0), 3)
    assert torch.equal(first["images"], expected)


def test_budgets_and_seeds_can_be_added(small_parquet: Path, copy: Path) -> None:
    was = figures(copy)
    assert reproduce.main(command(small_parquet, copy, eps_levels=[1, 2, 8], victim_seeds=[0, 1])) == 0
    found = card(copy)
    assert list(found["protection"]) == ["1/255", "2/255", "8/255"]
    assert found["protection"]["1/255"]["linf_levels"] == 1
    assert [victim["trainings"] for victim in found["victims"]] == [2] * 4
    assert found["victims"][0]["last_accuracy"]["std"] is not None
    assert figures(copy)["protection"]["8/255"] == was["protection"]["8/255"]


@pytest.mark.parametrize("damage", ["truncated", "emptied", "one byte"])
def test_a_damaged_chunk_is_made_again(
    damage: str, small_parquet: Path, copy: Path, reproduced: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / "craft" / "eps8" / "000016-000032.pt"
    whole = path.read_bytes()
    spoilt = bytearray(whole)
    spoilt[len(whole) // 2] ^= 1
    path.write_bytes({"truncated": whole[: len(whole) // 2], "emptied": b"", "one byte": bytes(spoilt)}[damage])
    assert reproduce.main(command(small_parquet, copy, stages=["victims", "card"])) == 0  # which are finished, and need it no more
    assert "8/255" not in card(copy)["protection"]
    assert reproduce.main(command(small_parquet, copy)) == 0
    assert f"{path} is damaged" in capsys.readouterr().err
    assert torch.equal(protected(copy, 8), protected(reproduced, 8))
    assert figures(copy) == figures(reproduced)


def test_a_chunk_beyond_the_budget_is_never_trained_on(small_parquet: Path, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy / "craft" / "eps2" / "000016-000032.pt"
    chunk = load(path)
    assert chunk
    chunk["images"][3, 0, 0, 0] ^= 128
    save(path, chunk)
    (copy / "victims" / "eps2-seed0.json").unlink()
    assert reproduce.main(command(small_parquet, copy, stages=["victims"])) == 1
    assert "image 19 of 40 changes by" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lacks", "stages", "says"),
    [
        ("data.pt", ["victims"], "run the stage `data`"),
        ("surrogate/epoch_0002.pt", ["craft"], "epoch_0002.pt is not there or damaged: run the stage `surrogate`"),
        ("means/epoch_0002.pt", ["craft"], "run the stage `means`"),
        ("craft/eps8/000000-000016.pt", ["victims"], "run the stage `craft`"),
    ],
)
def test_a_stage_names_the_one_it_needs(
    lacks: str, stages: list[str], says: str, small_parquet: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (lacks, "craft/eps8/000032-000040.pt", "victims/eps8-seed0.json"):
        (copy / path).unlink(missing_ok=True)
    assert reproduce.main(command(small_parquet, copy, stages=stages)) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("method", ["sep", "tap", "noise"])
def test_every_method_can_be_crafted(method: str, small_parquet: Path, copy: Path, tmp_path: Path) -> None:
    """On the surrogate of the finished run, which none of them decides."""
    settings = json.loads((copy / "settings.json").read_text()) | {"method": method}
    (copy / "settings.json").write_text(json.dumps(settings))
    shutil.rmtree(copy / "means")
    shutil.rmtree(copy / "craft")
    assert reproduce.main(command(small_parquet, copy, method=method, eps_levels=[8], stages=["means", "craft", "card"])) == 0
    members = {"sep": CHECKPOINTS, "tap": 1, "noise": 0}[method]
    assert card(copy)["protection"]["8/255"]["gradients"] == TRAIN * STEPS * members
    assert not (copy / "means").exists()


def test_a_method_without_an_ensemble_trains_none(small_parquet: Path, tmp_path: Path) -> None:
    everything = command(small_parquet, tmp_path / "out", method="noise", eps_levels=[8], victim_epochs=1)
    assert reproduce.main(everything) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"settings.json", "data.pt", "craft", "victims", "card.json"}
    assert card(tmp_path / "out")["protection"]["8/255"]["linf_levels"] == 8


def test_it_runs_with_nothing_but_torch_and_pyarrow(small_parquet: Path, tmp_path: Path) -> None:
    """From the repository's root, the project not installed, and everything else it uses out of reach."""
    blocked = ["ray", "mlflow", "webdataset", "pydantic", "tyro", "yaml", "scipy", "matplotlib", "jinja2", "cluster", "tests"]
    program = f"""
import runpy, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(name)
sys.meta_path = [Blocked(), *(finder for finder in sys.meta_path if "editable" not in repr(finder))]
sys.argv = ["pipeline/reproduce.py", *{command(small_parquet, tmp_path / "out", epochs=2)}]
sys.path[0] = {str(ROOT / "pipeline")!r}
try:
    runpy.run_path("pipeline/reproduce.py", run_name="__main__")
except SystemExit as end:
    assert end.code == 0, end.code
assert sys.path[0] == {str(ROOT)!r}
assert not {{name.partition(".")[0] for name in sys.modules}} & set({blocked})
assert "pipeline.config.schema" not in sys.modules
print("only torch and pyarrow")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "only torch and pyarrow" in done.stdout, done.stderr
    assert "protected, 8/255" in done.stdout
    assert "victims/eps8-seed0: epoch 2 of 2" in done.stderr
