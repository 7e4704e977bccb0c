"""The paper's protocol in miniature, by `pipeline/reproduce.py` on the device: stopped after every piece, it ends as in one go."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("tyro", reason="the pipeline needs what docs/reproduce.md lists")
from cluster.deadline import Deadline
from cluster.local import LocalExecutor
from cluster.work import Capacity
from pipeline import reproduce
from pipeline.config.schema import RunConfig
from pipeline.protection import release
from pipeline.stages import protect
from pipeline.storage.folder import Folder
from sep.execution import resolve
from tests.fixtures import packed_run

TRAINING = ("--networks", "resnet8", "--epochs", "2", "--batch-size", "20")
COMMAND = [
    *("--data", "generated", "--pack.max-train-images", "40", "--pack.max-test-images", "20", "--pack.shard-images", "20", "--sweep"),
    *(f"--{stage}.{word[2:]}" if word.startswith("--") else word for stage in ("surrogate", "victim") for word in TRAINING),
    *("--protect.checkpoints", "2", "--protect.steps", "2", "--protect.eps-levels", "8", "--protect.kernels", "auto"),
]


@pytest.fixture(autouse=True)
def only_the_device(request: pytest.FixtureRequest, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sums in one order on a CPU, no GPU beside it, and one process, which knows what this test changes."""
    for place in ("processes", "local"):
        monkeypatch.setattr(f"cluster.{place}.cpus", lambda: 1)
    if request.config.getoption("--no-values"):
        monkeypatch.setattr(release, "check_budget", lambda *_: None)
    threads = torch.get_num_threads()
    if device.type == "cpu":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    yield
    torch.set_num_threads(threads)


def test_reading_and_storing_beside_the_device_change_nothing(
    packed: tuple[RunConfig, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Class means and crafting: another process reads the next shard and stores the last one."""
    monkeypatch.setattr(protect, "_capacity", lambda *_: Capacity(gpus=1))  # decides who computes, whether there is a GPU or not
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        manifest = protect.execute(*packed_run.copy(packed, folder, steps=2), LocalExecutor(processes=processes))
        names = ("samples.parquet", *(shard.name for shard in manifest.shards["train"]))
        found.append((packed_run.digests(manifest), [(folder / "protect" / name).read_bytes() for name in names]))
    assert found[0] == found[1]


def made(run: Path) -> dict[str, bytes]:
    """Everything that was trained and released, by its place."""
    weights = json.loads((run / "surrogate" / "checkpoints.json").read_text())["checkpoints"]
    shards = {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*.tar")}
    return {**{entry["file"]: entry["sha256"].encode() for entry in weights}, **shards}


def measured(run: Path) -> list[dict[str, Any]]:
    """The victims of the card, without how they spent their time."""
    found: list[dict[str, Any]] = json.loads((run / "card.json").read_text())["victims"]
    return [{name: value for name, value in victim.items() if name != "loader_percent"} for victim in found]


def stopped_often(run: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Start again and again, each time for the fewest looks at the clock in which anything is finished; the number of starts."""
    looks, code, starts, before = 1, 3, 0, {Path()}
    while code == 3:
        left = iter([False] * looks)
        monkeypatch.setattr(Deadline, "passed", lambda _, left=left: next(left, True))
        code, starts = reproduce.main([*COMMAND, "--run", str(run), "--minutes", "9"]), starts + 1
        after = {path for path in run.rglob("*") if path.is_file()}
        looks = looks + 1 if after == before else 1
        assert looks < 10
        before = after
    assert code == 0
    return starts


def test_the_protocol_in_pieces_is_the_protocol_in_one(
    request: pytest.FixtureRequest, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs of a surrogate, class means, two shards, and two victims: weights, bytes and accuracies are the same."""
    assert reproduce.main([*COMMAND, "--run", str(tmp_path / "whole")]) == 0
    if request.config.getoption("--no-values"):
        return  # it went through every stage on the device; what its pieces come to, values would show
    assert stopped_often(tmp_path / "run", monkeypatch) >= 8
    whole, pieces = made(tmp_path / "whole"), made(tmp_path / "run")
    assert whole.keys() == pieces.keys()
    assert [place for place in whole if whole[place] != pieces[place]] == []
    assert len(whole) == 2 + 2 + 1 + 2  # epochs; clean, test and protected shards
    assert measured(tmp_path / "whole") == measured(tmp_path / "run")
    assert [victim["data"] for victim in measured(tmp_path / "whole")] == ["clean", "protected"]
    assert all(victim["precision"] == [resolve("auto", device)] for victim in measured(tmp_path / "whole"))
