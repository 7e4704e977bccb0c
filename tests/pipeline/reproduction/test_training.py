from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from pipeline.reproduction import training as module
from pipeline.reproduction.pieces import Clock, TimeIsUp, load
from pipeline.reproduction.resident import Split
from pipeline.reproduction.training import Training, relabelled_accuracy, train, weights
from sep.execution import Precision
from sep.fitting import confusion, train_epoch
from sep.train_config import TrainConfig


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_the_best_renaming_is_found(classes: int) -> None:
    """As scipy's solver of the assignment problem finds it."""
    for seed in range(5):
        table = torch.randint(50, (classes, classes), generator=torch.Generator().manual_seed(seed))
        truth, predicted = linear_sum_assignment(table.numpy(), maximize=True)
        expected = 100 * float(table[truth, predicted].sum()) / float(table.sum())
        assert relabelled_accuracy(table) == pytest.approx(expected)


def test_a_shift_of_all_classes_is_undone_and_many_classes_are_left() -> None:
    assert relabelled_accuracy(torch.eye(10, dtype=torch.int64).roll(5, 1) * 7) == 100
    assert relabelled_accuracy(torch.eye(100, dtype=torch.int64)) is None


@pytest.fixture(scope="module")
def images() -> Split:
    generator = torch.Generator().manual_seed(0)
    return Split(torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8, generator=generator), torch.arange(40) % 2)


@pytest.fixture
def training() -> Training:
    return Training(
        network="resnet8",
        num_classes=2,
        image_size=8,
        mean=(127.0,) * 3,
        std=(74.0,) * 3,
        config=TrainConfig(epochs=4, batch_size=16),
        seed=3,
        device=torch.device("cpu"),
        precision="float32",
    )


def figures(result: dict[str, list[dict[str, float]]]) -> list[tuple[float, float]]:
    return [(row["loss"], row["train_accuracy"]) for row in result["epochs"]]


def all_weights(folder: Path) -> torch.Tensor:
    kept = [load(weights(folder, "surrogate", epoch)) for epoch in range(4)]
    return torch.cat([value.flatten().double() for state in kept if state for value in state["network"].values()])


def test_a_training_in_pieces_is_the_training_in_one(training: Training, images: Split, tmp_path: Path) -> None:
    whole = train(training, images, None, tmp_path / "a", "surrogate", Clock(None))
    for start in range(4):
        with pytest.raises(TimeIsUp):
            train(training, images, None, tmp_path / "b", "surrogate", Clock(0))
        assert weights(tmp_path / "b", "surrogate", start).exists()
        assert not weights(tmp_path / "b", "surrogate", start + 1).exists()
    assert figures(train(training, images, None, tmp_path / "b", "surrogate", Clock(0))) == figures(whole)
    assert torch.equal(all_weights(tmp_path / "a"), all_weights(tmp_path / "b"))
    assert not (tmp_path / "b" / "surrogate.pt").exists()


@pytest.mark.parametrize("save_seconds", [0, 1000])
def test_a_killed_training_goes_on_from_its_last_state(
    save_seconds: int, training: Training, images: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(module, "SAVE_SECONDS", save_seconds)
    whole = train(training, images, images, tmp_path / "a", "v", Clock(None))
    started: list[None] = []

    def killed_in_the_third(*arguments: object) -> object:
        started.append(None)
        if len(started) == 3:
            raise KeyboardInterrupt
        return train_epoch(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(module, "train_epoch", killed_in_the_third)
        with pytest.raises(KeyboardInterrupt):
            train(training, images, images, tmp_path / "b", "v", Clock(None))
    again = train(training, images, images, tmp_path / "b", "v", Clock(None))
    assert ("v: goes on after epoch 2 of 4" in caplog.text) is (save_seconds == 0)
    assert figures(again) == figures(whole)
    assert [row["test_accuracy"] for row in again["epochs"]] == [row["test_accuracy"] for row in whole["epochs"]]
    assert again["relabelled_accuracy"] == whole["relabelled_accuracy"] is not None


def test_precision_is_asked_for_and_felt(training: Training, images: Split, tmp_path: Path) -> None:
    """bf16 rounds; the weights stay what they are."""
    losses = {}
    precisions: tuple[Precision, ...] = ("float32", "tf32", "bf16")
    for precision in precisions:
        asked = dataclasses.replace(training, precision=precision)
        losses[precision] = figures(train(asked, images, None, tmp_path / precision, "surrogate", Clock(None)))[0][0]
    assert losses["tf32"] == losses["float32"] != losses["bf16"] == pytest.approx(losses["float32"], rel=0.02)


def test_tests_follow_the_precision(training: Training, images: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[object] = []

    def watched(*arguments: object) -> torch.Tensor:
        used.append(arguments[3])
        return confusion(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "confusion", watched)
    precisions: tuple[Precision, ...] = ("float32", "bf16")
    for precision in precisions:
        train(dataclasses.replace(training, precision=precision), images, images, tmp_path / precision, "v", Clock(None))
    assert used == ["float32"] * 4 + ["bf16"] * 4


def test_a_training_that_diverges_says_so(training: Training, images: Split, tmp_path: Path) -> None:
    wild = dataclasses.replace(training, config=TrainConfig(epochs=4, batch_size=4, lr=1e12))
    with pytest.raises(ValueError, match="diverged in epoch"):
        train(wild, images, None, tmp_path, "surrogate", Clock(None))
    assert not (tmp_path / "surrogate.json").exists()
