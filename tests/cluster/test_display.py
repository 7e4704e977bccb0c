"""Progress: one live line on a terminal, plain lines elsewhere, and no silence."""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import pty
import struct
import termios
import time
from collections.abc import Iterator

import pytest

from cluster import display
from cluster.display import Display, doing, duration, showing, stage
from cluster.progress import Epochs, Progress


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Follow nothing but the work of this test."""
    monkeypatch.setattr(display, "_followed", [])


def log_line(shown: Display, text: str) -> None:
    shown.handle(logging.LogRecord("test", logging.INFO, "", 0, text, (), None))


class Terminal:
    """A pseudo-terminal of 60 columns: a stream, and the lines that are to be seen after something was written to it."""

    def __init__(self) -> None:
        self._seen, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 60, 0, 0))
        os.set_blocking(self._seen, False)
        self.stream = open(slave, "w", encoding="utf-8")  # noqa: SIM115 - `close` closes it
        self._written = ""

    def lines(self) -> list[str]:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._written += os.read(self._seen, 65536).decode()
        lines = []
        for line in self._written.replace("\r\n", "\n").split("\n"):
            cells: list[str] = []
            for text in line.split("\r"):
                cells[: len(text)] = text
            lines.append("".join(cells).rstrip())
        return lines

    def close(self) -> None:
        self.stream.close()
        os.close(self._seen)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """An empty terminal."""
    opened = Terminal()
    yield opened
    opened.close()


def test_a_terminal_has_one_line_below_the_log(terminal: Terminal) -> None:
    shown = Display(terminal.stream, live=True)
    log_line(shown, "before anything goes on")
    work = Progress("protect", "images", 200)
    work.done = 50
    with stage("protect", 3, 5):
        display.follow(work)
        shown.tick()
        log_line(shown, "a line of the log")
        first, second, live = terminal.lines()
        assert (first, second) == ("before anything goes on", "a line of the log")
        assert live.startswith("[3/5] |█████               | protect: 50 of 200 images, ")
        assert len(live) <= 60
        shown.tick()
        assert len(terminal.lines()) == 3


def test_a_live_line_is_never_wider_than_the_terminal(terminal: Terminal) -> None:
    with doing("a task with a long name, " * 3):
        shown = Display(terminal.stream, live=True)
        shown.tick()
    assert terminal.lines() == [("a task with a long name, " * 3)[:59]]


def test_a_live_line_goes_when_the_work_has_ended(terminal: Terminal) -> None:
    shown = Display(terminal.stream, live=True)
    with doing("starting 2 workers"):
        shown.tick()
        assert terminal.lines() == ["starting 2 workers (0 s so far)"]
    shown.tick()
    assert terminal.lines() == [""]


def test_nothing_is_left_of_a_live_line_after_the_end(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "REFRESH_SECONDS", 0.01)
    with showing(terminal.stream), stage("victim", 4, 5):
        while not terminal.lines()[0].startswith("[4/5] victim ("):
            time.sleep(0.01)
    logging.getLogger("pipeline").info("the summary")
    before, after = terminal.lines()
    assert (before[9:], after) == ("the summary", "")  # after the time


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
