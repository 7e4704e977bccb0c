"""Progress: one live line on a terminal, plain lines elsewhere, and no silence."""

from __future__ import annotations

import io
import logging

import pytest

from cluster import display
from cluster.display import Display, doing, duration, stage
from cluster.progress import Epochs, Progress


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Follow nothing but the work of this test."""
    monkeypatch.setattr(display, "_followed", [])


def log_line(shown: Display, text: str) -> None:
    shown.handle(logging.LogRecord("test", logging.INFO, "", 0, text, (), None))


def test_a_terminal_has_one_line_below_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 7.0)
    stream = io.StringIO()
    shown = Display(stream, live=True)
    work = Progress("protect", "images", 200)
    work.done = 50
    with stage("protect", 3, 5):
        display.follow(work)
        shown.tick()
        shown.tick()  # nothing has changed
        log_line(shown, "a line of the log")
        shown.tick()
    live = "[3/5] █████░░░░░░░░░░░░░░░ protect: 50 of 200 images, "
    before, log, after = filter(None, stream.getvalue().split("\r\x1b[2K"))
    assert before.startswith(live)
    assert log == "a line of the log\n"
    assert after.startswith(live)


def test_a_live_line_is_never_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    stream = io.StringIO()
    with doing("a task with a long name, " * 3):
        Display(stream, live=True).tick()
    assert len(stream.getvalue().removeprefix("\r\x1b[2K")) == 29


def test_a_live_line_goes_when_the_work_has_ended() -> None:
    stream = io.StringIO()
    shown = Display(stream, live=True)
    with doing("starting 2 workers"):
        shown.tick()
    shown.tick()
    assert stream.getvalue() == "\r\x1b[2Kstarting 2 workers (0 s so far)\r\x1b[2K"


def test_a_pipe_gets_a_plain_line_only_after_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    shown = Display(stream, live=False)
    with doing("starting 2 workers"):
        log_line(shown, "a line of the log")
        shown.tick()
        assert stream.getvalue() == "a line of the log\n"
        monkeypatch.setattr(display, "PLAIN_SECONDS", 0.0)
        shown.tick()
    shown.tick()
    assert stream.getvalue() == "a line of the log\nstarting 2 workers (0 s so far)\n"


def test_what_begins_inside_other_work_is_shown_until_it_ends() -> None:
    with stage("protect", 1, 1):
        work = Progress("class means", "images", 10)
        assert display._current()[0] is work
        work.finished(10)
        assert display._current()[1].startswith("protect (")
        inner = Progress("protect", "images", 10)
        assert display._current()[0] is inner
        del inner  # as where the caller stops listening
        assert display._current()[1].startswith("protect (")
    assert display._current() == (None, "")


def test_the_time_left_counts_from_the_first_result(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    work = Progress("protect", "images", 1100)
    now[0] = 60.0
    assert work.line() == "protect: 0 of 1,100 images, 60 s so far"
    work.finished(100)
    now[0] = 70.0
    work.finished(100)
    assert work.line() == "protect: 200 of 1,100 images, 10 images/s, 2 min left"
    assert work.share() == pytest.approx(200 / 1100)


def test_victims_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Epochs("victim", {f"trial-{n}": 10 for n in range(54)}, at_once=2) as victims:
        now[0] = 30.0
        assert victims.line() == "victim: 0 of 54 done, 2 running, 30 s so far"
        victims.reached("trial-0", 1)
        for n in range(12):
            victims.reached(f"trial-{n}", 10)
        victims.reached("trial-12", 1)
        now[0] = 150.0
        assert victims.line() == "victim: 12 of 54 done, 2 running, 7 min left"
        assert victims.share() == pytest.approx(121 / 540)
    assert victims.line() == ""


def test_a_surrogate_says_how_it_fares(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    surrogate = Epochs("surrogate: resnet18", {"resnet18": 120})
    surrogate.reached("resnet18", 1)
    now[0] = 15.0
    surrogate.reached("resnet18", 11, "loss 0.412, training accuracy 86.3 %")
    assert surrogate.line() == "surrogate: resnet18: epoch 11 of 120, loss 0.412, training accuracy 86.3 %, 3 min left"


def test_durations_are_readable() -> None:
    assert [duration(s) for s in (3.2, 89, 100, 5300, 36_000)] == ["3 s", "89 s", "2 min", "88 min", "10.0 h"]
