from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from pipeline.reproduction.pieces import Clock, TimeIsUp, load, load_json, measured, save, save_json


def test_the_clock_stops_before_a_piece_that_would_end_too_late() -> None:
    clock = Clock(0.5)
    clock.check(20)
    assert not clock.over(20)
    assert clock.over(40)
    with pytest.raises(TimeIsUp):
        clock.check(40)
    assert not Clock(None).over(1e9)


def test_a_stage_is_begun_with_a_minute_left_or_first() -> None:
    """The length of its first piece is not known, and every start must do one."""
    for minutes, over in ((0.0, True), (0.9, True), (1.1, False), (None, False)):
        clock = Clock(minutes)
        clock.begin()  # of the start's first stage
        if over:
            with pytest.raises(TimeIsUp):
                clock.begin()
        else:
            clock.begin()
            clock.begin()


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    content = {"images": torch.arange(5), "rows": [{"loss": 0.5}], "name": "a"}
    save(tmp_path / "in" / "a.pt", content)
    back = load(tmp_path / "in" / "a.pt")
    assert back is not None
    assert torch.equal(back.pop("images"), content.pop("images"))  # type: ignore[arg-type]
    assert back == content
    assert load(tmp_path / "b.pt") is load_json(tmp_path / "b.json") is None
    save_json(tmp_path / "a.json", {"a": [1, None]})
    assert load_json(tmp_path / "a.json") == {"a": [1, None]}
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["a.json", "a.pt"]


def test_a_file_is_replaced_only_by_a_whole_one(tmp_path: Path) -> None:
    save(tmp_path / "a.pt", {"a": 1})
    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        save(tmp_path / "a.pt", {"a": (lambda: 1)})  # cannot be written
    assert load(tmp_path / "a.pt") == {"a": 1}


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9])
def test_one_wrong_byte_is_noticed(tmp_path: Path, place: float, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.pt"
    save(path, {"images": torch.randint(256, (10000,), dtype=torch.uint8)})
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 0x55
    path.write_bytes(data)
    assert load(path) is None
    assert str(path) in caplog.text


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_half_a_file_is_noticed(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.pt"
    save(path, {"images": torch.zeros(10000)})
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert load(path) is None


def test_a_damaged_json_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"a\.json is damaged: delete it"):
        load_json(tmp_path / "a.json")


def test_costs_are_those_of_the_block() -> None:
    with measured(torch.device("cpu")) as cost:
        time.sleep(0.05)
        held = torch.ones(2**24)
    assert 0.05 <= cost["seconds"] < 5
    assert held.nbytes / 2**30 < cost["memory_gib"] < 64
