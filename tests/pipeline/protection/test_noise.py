"""The training against noise: an interrupted one goes on where it was, to the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.deadline import Deadline, TimeIsUp
from cluster.local import LocalExecutor
from pipeline.config.schema import RunConfig
from pipeline.protection import noise
from pipeline.stages import protect
from pipeline.storage.folder import Folder
from pipeline.training import states
from sep.methods.noise_training import Round, minimise
from sep.methods.registry import Method
from tests.fixtures import packed_run
from tests.fixtures.executors import LOCAL
from tests.fixtures.packed_run import digests

ROUNDS = 4
SETTINGS: dict[str, Any] = {"noise_rounds": ROUNDS, "steps": 2, "momentum": 0.9}


def copied(packed: tuple[RunConfig, Folder], target: Path, method: Method) -> tuple[RunConfig, Folder]:
    config, folder = packed_run.copy(packed, target, method=method, checkpoints=None, **SETTINGS)
    return replace(config, surrogate=replace(config.surrogate, epochs=2, lr=0.05)), folder


def watched(monkeypatch: pytest.MonkeyPatch, fault: type[BaseException] | None = None) -> list[int]:
    """Return the numbers of the rounds to come; after the second of all, the fault is raised."""
    rounds: list[int] = []

    def told(*arguments: Any) -> Iterator[Round]:
        for each in minimise(*arguments):
            rounds.append(each.number)
            yield each
            if fault and rounds == [1, 2]:
                raise fault

    monkeypatch.setattr(noise, "minimise", told)
    monkeypatch.setattr(states, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(states, "LEAST_WORK", 0)
    return rounds


@pytest.mark.parametrize("method", ["error-min", "error-min-class"])
@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError])
def test_an_interrupted_start_leaves_its_rounds_to_the_next(
    packed: tuple[RunConfig, Folder], tmp_path: Path, method: Method, fault: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = copied(packed, tmp_path / "whole", method)
    whole = digests(protect.execute(config, folder, LOCAL))
    config, folder = copied(packed, tmp_path / "again", method)
    rounds = watched(monkeypatch, fault)
    if fault is KeyboardInterrupt:  # after a storage error the executor tries again by itself
        with pytest.raises(fault):
            protect.execute(config, folder, LOCAL)
        assert folder.exists("protect/noise.pt")
    made = protect.execute(config, folder, LOCAL)
    assert rounds == [1, 2, 3, 4]
    assert digests(made) == whole
    assert not folder.exists("protect/noise.pt")


def test_rounds_end_when_the_time_is_up(packed: tuple[RunConfig, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, folder = copied(packed, tmp_path, "error-min-class")
    rounds = watched(monkeypatch)
    asked = iter([False, False, True])  # by the executor, and after each round
    with monkeypatch.context() as late:
        late.setattr(Deadline, "passed", lambda _: next(asked))
        with pytest.raises(TimeIsUp):
            protect.execute(config, folder, LocalExecutor(Deadline(0)))
    assert rounds == [1, 2]
    protect.execute(config, folder, LOCAL)
    assert rounds == [1, 2, 3, 4]


def test_other_settings_begin_anew(packed: tuple[RunConfig, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, folder = copied(packed, tmp_path / "run", "error-min-class")
    rounds = watched(monkeypatch, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        protect.execute(config, folder, LOCAL)
    protect.execute(replace(config, overwrite=True, protect=replace(config.protect, momentum=0.5)), folder, LOCAL)
    assert rounds == [1, 2, 1, 2, 3, 4]
